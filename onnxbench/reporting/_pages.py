"""From a page as data to its HTML: templates filled in, drawings laid out, and data for its script put beside."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from onnxbench.reporting._blocks import HOTTEST, Block, Cell, Chart, Number, Page, Place, Table
from onnxbench.reporting._drawing import BOX, lay_out

PAGE_ROWS = 50
"""Rows of a table that are seen at once, and without JavaScript."""
_LARGEST = 1e308
_TEMPLATES = Path(__file__).parent / "templates"


def page_html(page: Page) -> str:
    """Returns the page as one HTML text that refers to nothing outside itself.

    Raises:
        ImportError: A package of the extra ``report`` is missing.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    templates = Environment(
        loader=FileSystemLoader(_TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.globals.update(lay_out=lay_out, box=BOX, page_rows=PAGE_ROWS, hottest=HOTTEST)
    templates.tests.update(number=lambda cell: isinstance(cell, Number), place=lambda cell: isinstance(cell, Place))
    templates.filters.update(kind=lambda block: type(block).__name__, first_rows=_first_rows)
    charts = any(isinstance(block, Chart) for block in _blocks(page))
    made: str = templates.get_template("page.html").render(
        page=page,
        style=Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup((_TEMPLATES / "page.js").read_text(encoding="utf-8")),
        plotly=Markup(_plotly()) if charts else "",
        data=Markup(_island(_data(page))),  # escaped there
    )
    return made


def _blocks(page: Page) -> Iterator[Block]:
    for section in page.sections:
        yield from section.blocks


def _plotly() -> str:
    """Returns plotly's JavaScript, fit to stand within a script element."""
    from plotly.offline import get_plotlyjs

    text: str = get_plotlyjs()
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _island(data: Any) -> str:
    """Returns JSON that can stand within a script element: no text in it can end that."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _data(page: Page) -> dict[str, Any]:
    tables = [block for block in _blocks(page) if isinstance(block, Table)]
    charts = [block for block in _blocks(page) if isinstance(block, Chart)]
    return {
        "subject": page.subject,
        "tables": {table.name: _table(table) for table in tables},
        "charts": {chart.name: {"traces": chart.traces, "layout": chart.layout} for chart in charts},
    }


def _table(table: Table) -> dict[str, Any]:
    hidden = table.hidden()
    return {
        "columns": [{"title": column.title, "kind": column.kind} for column in table.columns],
        "shown": [at for at in range(len(table.columns)) if at not in hidden],
        "rows": [[_cell(cell) for cell in row] for row in table.rows],
        "order": _order(table),
        "sortBy": table.sort_by,
        "moduleColumn": table.module_column,
        "opens": table.opens,
        "pageRows": PAGE_ROWS,
    }


def _cell(cell: Cell) -> Any:
    """Returns a cell as the script reads it: numbers as value, text and heat, places as text, link and short text."""
    if isinstance(cell, Number):
        value = cell.value
        if value is not None:  # JSON has neither NaN nor infinity
            value = None if math.isnan(value) else min(max(value, -_LARGEST), _LARGEST)
        return [value, cell.text, cell.heat]
    if isinstance(cell, Place):
        return [cell.text, cell.href, cell.short]
    return cell


def _order(table: Table) -> list[int]:
    """Returns the rows in the order in which they are shown at first."""
    rows = range(len(table.rows))
    column = table.sort_by
    if column is None:
        return list(rows)

    def key(at: int) -> tuple[bool, float]:
        cell = table.rows[at][column]
        value = cell.value if isinstance(cell, Number) else None
        return value is None, -(value or 0.0)

    return sorted(rows, key=key)


def _first_rows(table: Table) -> Iterable[tuple[int, Any]]:
    """Returns the rows that are shown at first, with their numbers."""
    return [(at, table.rows[at]) for at in _order(table)[:PAGE_ROWS]]
