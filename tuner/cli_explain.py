"""The verb explain: what a study has learned, and what would change its answer."""

from tuner.cli_flags import JsonFlag, StorageFlag
from tuner.cli_output import check_writable, show_json, tell, write_page
from tuner.cli_output import show as put
from tuner.cli_study import HtmlFlag, Name


def explain(
    name: Name, *, html: HtmlFlag = None, storage: StorageFlag = None, json: JsonFlag = False
) -> None:
    """What moved a study's figures, what the model had wrong, and what would change the answer."""
    from tuner.cli_tables import storage_or_default
    from tuner.insight.study import explain_view
    from tuner.report import from_study, page
    from tuner.report.insight_documents import insight_document
    from tuner.report.insight_screen import insight_screen
    from tuner.view import load_study

    target = check_writable(html) if html else None
    where = storage_or_default(storage)
    view = load_study(name, where)
    tell("pricing the candidates once more")
    insight = explain_view(view, where)
    if target:
        write_page(target, page.page(from_study.study_report(view), insight))
    if json:
        show_json(insight_document(insight))
    else:
        put(insight_screen(insight))
