"""The page of `weakmcn report`: one file of HTML that needs no other.

Everything that comes from data (expressions, names, paths) passes through `html.escape`; the template has no place for
anything else. Pictures are JPEGs inside the page, each of bounded size.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from string import Template

import numpy as np
from PIL import Image

from ..model.evaluate import Evaluation
from .cases import BREAKDOWNS, KINDS, RELATIONS, Case, counted
from .charts import bars, curve, shares
from .pictures import Marks, marked_photo

PICTURE_PX = (340, 300)
MOST_BYTES = 48_000
"""Of one picture."""
QUALITIES = (86, 76, 64, 50, 35, 20)
DEFINITIONS = {
    "REC Acc@0.5": "box IoU > 0.5, strictly",
    "RES mIoU": "mean over sentences of the mask IoU",
    "oIoU": "sum of the intersections over the sum of the unions; favours large objects",
    "Pr@X": "mask IoU > X, strictly",
    "IE": "inconsistency: exactly one of box IoU > 0.5 and mask IoU ≥ 0.5 holds; lower is better",
    "SAM head": "the same boxes, with SAM's mask of the box in place of the predicted mask",
    "floor": "without language: the candidate of highest objectness, a random one, the largest, with SAM's mask",
    "ceiling": "the candidate that fits the true box best, with SAM's mask",
}
COLUMNS = {
    "rec_acc50": "REC Acc@0.5",
    "res_miou": "RES mIoU",
    "res_oiou": "oIoU",
    "pr50": "Pr@0.5",
    "pr60": "0.6",
    "pr70": "0.7",
    "pr80": "0.8",
    "pr90": "0.9",
    "inconsistency": "IE",
}
ROWS = {
    "best_scored": "floor: best scored",
    "random": "floor: random",
    "largest": "floor: largest",
    "oracle": "ceiling: oracle",
}
GROUPS = {
    "best": "best",
    "worst": "worst",
    "random": "random",
    "kind1": "failures of kind 1",
    "kind2": "failures of kind 2",
}


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A case of the gallery."""

    case: Case
    groups: Sequence[str]
    """Of `GROUPS`, at least one."""
    picture: str
    """A data address."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """All that stands on the page."""

    title: str
    facts: Sequence[str]
    evaluation: Evaluation
    cases: Sequence[Case]
    own_masks: bool
    """Whether the system predicts masks; else mask figures are those of the SAM head, or there are none."""
    boxes: bool = True
    """Whether it predicts boxes; else an answer is right whose mask is."""
    objects: str
    """Where "other objects" come from, in words."""
    shown: Sequence[Shown]
    losses: Sequence[Mapping[str, float]]
    """The lines of metrics.jsonl."""
    router: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    """As `router_weights` gives them."""

    @property
    def masks(self) -> bool:
        """Whether there are mask figures."""
        return self.own_masks or bool(self.evaluation.sam_head)

    @property
    def rec(self) -> str:
        """What the share of right answers is called."""
        return "REC Acc@0.5" if self.boxes else "RES Pr@0.5"

    @property
    def res(self) -> str:
        """What mask figures are called."""
        return "RES mIoU" if self.own_masks else "RES mIoU (SAM head)"


def page(contents: Contents) -> str:
    """The whole page."""
    sections = {
        "Results": _results(contents),
        "Where it is right": _breakdowns(contents),
        "Two kinds of failure": _kinds(contents),
        "Gallery": _gallery(contents),
        "Training": _training(contents),
        "DVFE's router": _router(contents),
    }
    there = {title: body for title, body in sections.items() if body}
    template = Template((files("weakmcn.cli") / "report.html").read_text("utf-8"))
    return template.substitute(
        title=escape(contents.title),
        facts="<br>".join(escape(fact) for fact in contents.facts),
        links=" ".join(f'<a href="#{_anchor(title)}">{escape(title)}</a>' for title in there),
        content="\n".join(
            f'<section id="{_anchor(title)}"><h2>{escape(title)}</h2>{body}</section>' for title, body in there.items()
        ),
    )


def picture(rgb: np.ndarray, true: Marks, predicted: Marks) -> str:
    """A photograph with its marks as a data address, at most `MOST_BYTES` of JPEG."""
    drawn = marked_photo(rgb, true, predicted, *PICTURE_PX)
    return f"data:image/jpeg;base64,{base64.b64encode(_jpeg(drawn)).decode('ascii')}"


def _jpeg(drawn: Image.Image) -> bytes:
    while True:
        for quality in QUALITIES:
            file = io.BytesIO()
            drawn.save(file, "JPEG", quality=quality, optimize=True)
            if file.tell() <= MOST_BYTES:
                return file.getvalue()
        drawn = drawn.resize((max(1, drawn.width // 2), max(1, drawn.height // 2)))


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-").replace("'", "")


def _results(contents: Contents) -> str:
    found = contents.evaluation
    rows = [("own", "this run", found.summary)]
    if found.sam_head:
        rows.append(("", "with the SAM head", found.sam_head))
    rows += [("faint", label, found.baselines[name]) for name, label in ROWS.items()]
    heads = "".join(f"<th>{escape(head)}</th>" for head in ("", *COLUMNS.values()))
    body = "".join(
        f'<tr class="{kind}"><td>{escape(label)}</td>'
        + "".join(f"<td>{figures[name]:.1f}</td>" if name in figures else "<td></td>" for name in COLUMNS)
        + "</tr>"
        for kind, label, figures in rows
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in found.notes)
    defined = "".join(f"<dt>{escape(name)}</dt><dd>{escape(what)}</dd>" for name, what in DEFINITIONS.items())
    return (
        f"<p>Percent of all {found.summary['sentences']:,.0f} sentences of {escape(found.split)}, at the photograph's "
        f'own size; a sentence without an answer is a miss.</p><div class="wide"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{notes}<dl>{defined}</dl>"
    )


def _breakdowns(contents: Contents) -> str:
    charts = []
    for breakdown in BREAKDOWNS:
        found = breakdown.bins(contents.cases, masks=contents.masks)
        if not found:
            continue
        series = [(contents.rec, "rec", [each.rec for each in found])]
        if contents.masks:
            series.append((contents.res, "res", [each.res or 0.0 for each in found]))
        drawn = bars([each.label for each in found], series, [each.count for each in found], breakdown.axis)
        charts.append(f"<div><h3>{escape(breakdown.title)}</h3>{drawn}</div>")
    key = f'<i class="rec"></i>{escape(contents.rec)}'
    if contents.masks:
        key += f'<i class="res"></i>{escape(contents.res)}'
    return (
        f'<p class="key">{key}</p><p class="faint">n: sentences. What is on a border belongs to the bin on its right, '
        f"and bins without a sentence are left out. {escape(contents.objects)}</p>"
        f'<div class="charts">{"".join(charts)}</div>'
    )


def _kinds(contents: Contents) -> str:
    if not contents.boxes:
        return ""
    total, wrong = len(contents.cases), sum(not case.right for case in contents.cases)
    boxes = []
    for kind, count in counted(contents.cases).items():
        name, rule = KINDS[kind]
        boxes.append(
            f'<div class="kind"><b>{count:,}</b> of {total:,} sentences<h3>Kind {kind}: {escape(name)}</h3>'
            f"<p>{escape(rule)}</p></div>"
        )
    return (
        "<p>The two that the paper's supplement shows, as rules that can be counted. "
        f"{wrong:,} of {total:,} boxes are wrong in all. The gallery shows some of each.</p>"
        f'<div class="kinds">{"".join(boxes)}</div>'
        f'<p class="faint">Words of place: {", ".join(sorted(RELATIONS))}.</p>'
    )


def _gallery(contents: Contents) -> str:
    if not contents.shown:
        return ""
    groups = "".join(f'<option value="{name}">{escape(label)}</option>' for name, label in GROUPS.items())
    kinds = "".join(f'<option value="{kind}">kind {kind}</option>' for kind in KINDS)
    form = (
        '<form><label>Cases<select name="group"><option value="">all</option>' + groups + "</select></label>"
        '<label>Answer<select name="answer"><option value="">right and wrong</option>'
        '<option value="right">right</option><option value="wrong">wrong</option></select></label>'
        '<label>Failure<select name="kind"><option value="">any or none</option>' + kinds + "</select></label>"
        '<label>Words, at least<input type="number" name="least" min="0"></label>'
        '<label>at most<input type="number" name="most" min="0"></label>'
        '<label>Expression has<input type="search" name="search" placeholder="striped ring"></label>'
        '<span id="shown" class="faint"></span></form>'
    )
    return (
        '<p class="key"><i class="true"></i>truth<i class="predicted"></i>prediction; box and outline of the mask'
        '<span class="right"><span class="dot"></span>right</span><span><span class="dot"></span>wrong</span></p>'
        f'{form}<div class="gallery">{"".join(_figure(shown, boxes=contents.boxes) for shown in contents.shown)}</div>'
    )


def _figure(shown: Shown, *, boxes: bool) -> str:
    case, record = shown.case, shown.case.record
    answer = "right" if case.right else "wrong"
    figures = f"box IoU {record.box_iou:.2f}, " if boxes else ""
    figures = record.miss or f"{figures}mask IoU {case.mask_iou:.2f}"
    kind = f", failure of kind {case.kind}" if case.kind else ""
    groups = "".join(f"{GROUPS[name]}; " for name in shown.groups if not name.startswith("kind"))
    return (
        f'<figure class="{answer}" data-answer="{answer}" data-groups="{" ".join(shown.groups)}" '
        f'data-kind="{case.kind or ""}" data-words="{case.words}" data-text="{escape(record.sentence.lower())}">'
        f'<img src="{shown.picture}" alt="{escape(f"answer to “{record.sentence}”")}" loading="lazy">'
        f'<figcaption>“{escape(record.sentence)}”<small><span class="dot"></span>{escape(figures)}{kind}<br>'
        f"{escape(groups)}photo {escape(record.key)}, ref {record.ref_id}</small></figcaption></figure>"
    )


def _training(contents: Contents) -> str:
    if not contents.losses:
        return ""
    names = [name for name in contents.losses[0] if name not in ("epoch", "step")]
    order = sorted(names, key=lambda name: (name == "lr", name != "total", name))
    charts = []
    for name in order:
        title, unit, scale = ("learning rate", "thousandths", 1000) if name == "lr" else (f"loss: {name}", "loss", 1)
        drawn = curve([(line["step"], scale * line[name]) for line in contents.losses], "step", unit)
        charts.append(f"<div><h3>{escape(title)}</h3>{drawn}</div>")
    told = "Each point is the mean of the steps since the last one."
    return f'<p class="faint">{told}</p><div class="charts">{"".join(charts)}</div>'


def _router(contents: Contents) -> str:
    if not contents.router:
        return ""
    rows = [
        (task, [(bank, float(each.mean())) for bank, each in banks.items()]) for task, banks in contents.router.items()
    ]
    body = "".join(
        f"<tr><td>{escape(task)}</td><td>{escape(bank)}</td><td>{each.mean():.3f}</td><td>{each.std():.3f}</td>"
        f"<td>{each.min():.3f} – {each.max():.3f}</td></tr>"
        for task, banks in contents.router.items()
        for bank, each in banks.items()
    )
    images = len(next(iter(next(iter(contents.router.values())).values())))
    return (
        f"<p>What DVFE's router gives each bank for the two tasks: mean over the {images:,} photographs of "
        f"{escape(contents.evaluation.split)}, each counted once.</p>"
        f'<div class="charts"><div>{shares(rows)}</div><div class="wide"><table><thead><tr><th>task</th><th>bank</th>'
        f"<th>mean</th><th>std</th><th>range</th></tr></thead><tbody>{body}</tbody></table></div></div>"
    )
