"""The flags that verbs share: MODEL, CLUSTER, WORKLOAD and what narrows the space."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

MODEL, CLUSTER, WORKLOAD, SPACE = "Model", "Cluster", "Workload", "Search space"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFlags:
    """What a verb was told about the job; None where a flag was left out."""

    model: Annotated[
        str | None,
        typer.Option(metavar="PRESET", help="A model by name; see `meshtune models`.", rich_help_panel=MODEL),
    ] = None
    hf_config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="A Hugging Face config.json, or its folder.", rich_help_panel=MODEL
        ),
    ] = None
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET|FILE",
            help="A cluster by name (see `meshtune clusters`), or a TOML file.",
            rich_help_panel=CLUSTER,
        ),
    ] = None
    devices: Annotated[
        int | None, typer.Option(metavar="N", help="How many of its devices.", rich_help_panel=CLUSTER)
    ] = None
    global_batch: Annotated[
        int | None, typer.Option(metavar="N", help="Sequences per optimizer step.", rich_help_panel=WORKLOAD)
    ] = None
    seq_len: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens per sequence.", rich_help_panel=WORKLOAD)
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="bf16 (if not given), fp16, fp8, mxfp8, nvfp4 or fp32.",
            rich_help_panel=WORKLOAD,
        ),
    ] = None
    framework: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Only plans that this trainer can run; any if not given.",
            rich_help_panel=WORKLOAD,
        ),
    ] = None
    space: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="A TOML file of knobs and the values they may take.", rich_help_panel=SPACE
        ),
    ] = None
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KNOB=V,V", help="Narrow one knob; may be repeated.", rich_help_panel=SPACE
        ),
    ] = None

    @property
    def given(self) -> list[str]:
        """The flags that were given, as a person types them."""
        names = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        return ["--" + name.rstrip("_").replace("_", "-") for name in names]


def job_flags(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb whose first parameter is a `JobFlags` gets all its flags on the command line.

    typer reads flags from a function's signature; this writes them there once for every verb.
    """
    hints = get_type_hints(JobFlags, include_extras=True)
    shared = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in fields(JobFlags)
    ]
    own = list(inspect.signature(verb).parameters.values())[1:]

    @wraps(verb)
    def command(**values: Any) -> None:
        job = JobFlags(**{parameter.name: values.pop(parameter.name) for parameter in shared})
        verb(job, **values)

    positional = [p for p in own if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    parameters = [*positional, *shared, *(p for p in own if p not in positional)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    del command.__wrapped__
    return command


JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON document instead of tables.")]
StorageFlag = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="Where studies live: sqlite:///FILE, journal:///FILE or postgresql://...",
    ),
]
PlanFlag = Annotated[
    str | None, typer.Option("--plan", metavar='"tp=8 pp=4 ..."', help="The plan as knob=value words.")
]
