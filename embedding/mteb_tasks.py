"""Tasks of the package `mteb`, where it is installed and the Hub can be reached."""

from sentence_transformers import SentenceTransformer


def run_mteb(model: SentenceTransformer, name: str) -> dict[str, float]:
    """The main score of one task of mteb.

    Raises:
        ConnectionError: if its data cannot be downloaded.
    """
    import mteb

    tasks = mteb.get_tasks(tasks=[name])
    try:
        result = mteb.evaluate(model, tasks, cache=None)  # its cache does not know weights apart
    except Exception as error:  # datasets, huggingface_hub and requests each raise their own
        raise ConnectionError(f"mteb could not run {name}: {error}") from error
    return {"main_score": float(result.task_results[0].get_score())}
