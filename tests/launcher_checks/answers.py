"""The way a check talks: questions as a JSON list on stdin, answers on the last line of stdout."""

import contextlib
import io
import json
import sys
import traceback


def answer_all(ask):
    """Ask each question; what the launcher raises becomes the answer."""
    questions = json.load(sys.stdin)
    answers = [_answer(ask, question) for question in questions]
    print(json.dumps(answers))


def _answer(ask, question):
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return {"accepted": True, **ask(question)}
    except SystemExit:  # argparse and tyro say why before they leave
        return {"accepted": False, "error": said.getvalue()[-2000:]}
    except Exception as error:  # noqa: BLE001  a parser's refusal has any type
        traceback.print_exc()
        return {"accepted": False, "error": f"{type(error).__name__}: {error}"}
