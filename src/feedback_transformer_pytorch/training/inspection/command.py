"""The command `inspect`: a folder of plots, and a page, of what a model does with a passage."""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError
from ...files import begin_directory, beside, check_vacant, finish_directory, write_synced, writing
from ...model import FeedbackTransformer
from ..models.architectures import default_device
from ..options import InspectOptions
from ..reporting.progress import printable
from ..saving.run import Run
from .findings import look
from .page import page, plotly_source
from .passage import passage_of
from .pictures import pictures


def inspect_run(options: InspectOptions) -> None:
    """Writes the folder.

    Raises:
        InputError: the RUN or the text cannot be used, or the folder holds something or cannot be written.
        MissingExtraError: a page is asked for, but `plotly` is not installed.
    """
    run, folder = Run.open(options.run), Path(options.out).resolve()
    check_vacant(folder)
    if run.options.model != "feedback":
        raise InputError(
            f"{run.path} holds a model of the kind {run.options.model!r}, which has no feedback to look at; give a run "
            "with --model feedback"
        )
    plotly = plotly_source() if options.page else None
    passage = passage_of(run, options)
    model = run.load_model(passage.num_tokens).to(default_device())
    assert isinstance(model, FeedbackTransformer)
    findings, title = look(model, passage), printable(_title(run, options))
    files = pictures(findings, title)
    if plotly is not None:
        files["index.html"] = page(findings, title, model.config, plotly)
    begin_directory(folder)
    with writing(folder):
        for name, content in files.items():
            write_synced(beside(folder) / name, content)
    finish_directory(folder)


def _title(run: Run, options: InspectOptions) -> str:
    """Which model reads what."""
    if options.text is None:
        return f"{run.path.resolve().name}: task {run.options.task}"
    return f"{run.path.resolve().name}: {'standard input' if options.text == '-' else Path(options.text).name}"
