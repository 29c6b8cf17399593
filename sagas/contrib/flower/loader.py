"""Loads our templates beside Flower's own, and adds a tab to Flower's navigation bar."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from tornado.template import BaseLoader, Template

__all__ = ["Templates"]

logger = logging.getLogger(__name__)

_OURS = Path(__file__).parent / "templates"

#: The item in Flower's navigation bar that our tab follows.
_LAST_TAB = re.compile(r"reverse_url\('broker'\).*?</li>", re.DOTALL)

_TAB = """
        <li class="nav-item">
          {% set here = handler.request.path.startswith(reverse_url('sagas')) %}
          <a class="nav-link{% if here %} active{% end %}" href="{{ reverse_url('sagas') }}"
            {% if here %}aria-current="page"{% end %}>Sagas</a>
        </li>"""


class Templates(BaseLoader):
    """Loads templates from our folder, or else from Flower's. Names are not relative to the including template."""

    def __init__(self, flowers: str) -> None:
        super().__init__()
        self._places = (_OURS, Path(flowers))

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:  # noqa: ARG002
        return name

    def _create_template(self, name: str) -> Template:
        file = next((place / name for place in self._places if (place / name).is_file()), self._places[-1] / name)
        source = file.read_text(encoding="utf-8")
        return Template(_with_tab(source) if name == "navbar.html" else source, name=name, loader=self)


def _with_tab(navbar: str) -> str:
    last = _LAST_TAB.search(navbar)
    if last is None:
        logger.warning("this version of Flower has another navigation bar, so it has no tab for sagas. Open /sagas")
        return navbar
    return navbar[: last.end()] + _TAB + navbar[last.end() :]
