"""The dashboard's script: Streamlit runs it from top to bottom for every page and every click.

serve.py starts it with one argument: the command line as JSON. Each page is a function `show(opened)` of its own
module; what goes wrong in it becomes one line on the page, and the app stays up.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

import streamlit as st

from cope_prep.jobs.dashboard import opened as opened_
from cope_prep.jobs.dashboard import shared
from cope_prep.jobs.dashboard.opened import Arguments, Choice, Opened
from cope_prep.jobs.dashboard.words import plain

ICON = "🎞️"
"""A Material icon would be fetched from Google."""
PAGES = {
    "overview": ("Overview", ":material/dashboard:"),
    "progress": ("Progress", ":material/speed:"),
    "explore": ("Explore", ":material/table_view:"),
    "clip": ("Clip", ":material/movie:"),
    "compare": ("Compare", ":material/compare_arrows:"),
    "mix": ("Mix", ":material/donut_small:"),
}
"""Name, which is also the URL's path -> title and icon."""
HOME = "overview"
"""The page that `/` shows, too."""
_SPECS = "specs"
_SPEC_SEEN = "_spec_seen"
_MAX_HASH = 64


@st.cache_data(ttl=10, show_spinner="Looking at the dataset …")
def _choices(dataset: str) -> tuple[Choice, ...]:
    return opened_.find_choices(dataset)


def _open(arguments: Arguments) -> Opened:
    choices = _choices(arguments.dataset)
    chosen = opened_.choose(choices, arguments.spec)
    if len(choices) > 1:
        chosen = _choose(choices, chosen)
    elif chosen.stage:
        st.sidebar.caption(plain(chosen.label))
    shared.set_spec(chosen.spec_hash if len(choices) > 1 else "")
    return Opened(
        layout=chosen.layout,
        stage=chosen.stage,
        choices=choices,
        mixes=arguments.mixes,
        compare=arguments.compare,
    )


def _choose(choices: tuple[Choice, ...], default: Choice) -> Choice:
    """The selector of specs, and the URL: what it names is taken when it comes, then follows the selector.

    A link is opened in a session of its own, and so is a page that is loaded again: only the URL tells which specs
    were meant.
    """
    state, query = st.session_state, st.query_params
    asked = query.get("spec")
    found = None if asked is None else opened_.choice_of_hash(choices, asked)
    if found is not None and asked != state.get(_SPEC_SEEN):
        state[_SPECS] = found
    if state.get(_SPECS) not in choices:
        state[_SPECS] = default
    chosen = st.sidebar.selectbox(
        "Specs",
        choices,
        format_func=lambda choice: choice.label,
        key=_SPECS,
        persist_state="session",
        on_change=_forget_anchor,
    )
    if asked is not None and found is None:
        st.warning(
            f"No output here has the specs {plain(asked[:_MAX_HASH])}. Shown are those of the side bar.",
            icon=":material/warning:",
        )
    elif chosen != (found or default):
        query["spec"] = chosen.spec_hash
    state[_SPEC_SEEN] = query.get("spec")
    return chosen


def _forget_anchor() -> None:
    """With other specs the numbers in Clip's URL would name other frames."""
    for name in ("spec", "gop", "anchor"):
        st.query_params.pop(name, None)


def run_page(name: str, arguments: Arguments) -> None:
    """Draw one page; whatever goes wrong is a line on it."""
    st.title(PAGES[name][0], anchor=False)
    with shared.errors_shown():
        # Here and not above: Clip brings FFmpeg and numba, which the other pages do without.
        import_module(f"cope_prep.jobs.dashboard.page_{name}").show(_open(arguments))


def _page(name: str, arguments: Arguments) -> Callable[[], None]:
    def run() -> None:
        run_page(name, arguments)

    run.__name__ = name
    return run


def main(arguments: Arguments) -> None:
    """Draw the sidebar and the page that the URL names."""
    st.set_page_config(page_title="cope-prep", page_icon=ICON, layout="wide")
    pages = {
        name: st.Page(
            _page(name, arguments),
            title=PAGES[name][0],
            icon=PAGES[name][1],
            url_path="home" if name == HOME else name,
            default=name == HOME,
        )
        for name in PAGES
    }
    shared.set_pages(pages)
    # The default page has the path `/` alone; `/overview` is what its name would lead one to try.
    by_name = st.Page(_page(HOME, arguments), title=PAGES[HOME][0], url_path=HOME, visibility="hidden")
    page = st.navigation([*pages.values(), by_name])
    st.sidebar.markdown(f"**{plain(shared.short_name(arguments.dataset))}**")
    page.run()


if __name__ == "__main__":
    main(Arguments.from_json(sys.argv[1]))
