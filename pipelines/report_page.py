"""The page around a report's sections: its HTML skeleton and its style, in one file that loads nothing from anywhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from longseq.domains.plots import to_svg
from longseq.domains.sections import Section

LIGHT = """--ink:#16202b;--muted:#5a6674;--grid:#e1e6ec;--paper:#fff;--page:#f5f7f9;--accent:#1f63b5;--shade:31,99,181;
--bad:178,58,46;--warn-ink:#7a3e00;--warn:#ffe6c2;
--c1:#1f63b5;--c2:#c25e0e;--c3:#23804c;--c4:#7b46c2;--c5:#bb3049;--c6:#127f8d;--c7:#8a6b08;--c8:#5a6674;"""
DARK = """--ink:#e4eaf1;--muted:#9ba8b7;--grid:#303a46;--paper:#1a2129;--page:#12171d;--accent:#7db8f7;--shade:90,150,220;
--bad:214,96,84;--warn-ink:#ffd9a0;--warn:#5a3a08;
--c1:#6fb0f5;--c2:#f2a057;--c3:#6acb94;--c4:#b898f2;--c5:#f58296;--c6:#5cc9d6;--c7:#d8b54a;--c8:#a5b0be;"""
STYLE = (
    f"""
:root{{color-scheme:light dark;{LIGHT}}}
@media (prefers-color-scheme:dark){{:root{{{DARK}}}}}
@media print{{:root{{color-scheme:light;{LIGHT}}}}}
"""
    + """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);overflow-wrap:anywhere;
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
a{color:var(--accent)}
header,main,footer{max-width:1120px;margin:0 auto;padding:0 20px}
header{padding-top:28px}
h1{font-size:1.55rem;line-height:1.25;margin:0 0 4px}
h2{font-size:1.15rem;margin:36px 0 12px}
h3{font-size:.95rem;margin:0 0 8px}
p{margin:0 0 10px}
.about,footer,figcaption,.caption{color:var(--muted)}
.about{margin-bottom:14px}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;margin-top:14px;font-size:.9rem}
.badge{display:inline-block;background:var(--warn);color:var(--warn-ink);font-weight:700;
border-radius:6px;padding:6px 12px;margin:0 0 12px}
.mark{background:var(--warn);color:var(--warn-ink);font-weight:700;border-radius:4px;padding:0 6px}
.verdict{font-size:1.05rem;margin:0 0 14px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:14px 0}
.tile,.card{background:var(--paper);border:1px solid var(--grid);border-radius:10px}
.tile{padding:12px 16px}
.tile b{display:block;font-size:1.5rem;line-height:1.25;font-variant-numeric:tabular-nums}
.tile span{color:var(--muted);font-size:.85rem}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:16px}
#result .grid{grid-template-columns:minmax(0,max-content) minmax(340px,1fr)}
#result .card:only-child{grid-column:1/-1}
.card{padding:16px;margin:0;min-width:0}
.card.wide{grid-column:1/-1}
figure svg{display:block;width:100%;max-width:460px;height:auto;margin:0 auto}
.panorama{overflow-x:auto}
.panorama svg{max-width:980px;min-width:640px}
svg *{stroke-linejoin:round;font-family:inherit!important}
figcaption,.caption{font-size:.85rem;margin:8px 0 0}
.scroll{overflow-x:auto;max-width:100%}
.scroll:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums;overflow-wrap:normal}
th,td{padding:5px 12px 5px 0;text-align:left;border-bottom:1px solid var(--grid);vertical-align:top;white-space:nowrap}
th:not(:first-child),td{padding-left:6px}
thead th{color:var(--muted);font-weight:600}
tbody th{font-weight:500;position:sticky;left:0;background:var(--paper)}
tbody tr:last-child>*{border-bottom:0}
td.num,th.num{text-align:right}
tr.model>*{background:linear-gradient(rgba(var(--shade),.1),rgba(var(--shade),.1)) var(--paper)}
.confusion tbody th{vertical-align:middle;border:0}
.confusion td{padding:2px;border:0;text-align:center;vertical-align:middle}
.confusion th.num{text-align:center}
.confusion td.num{padding:5px 8px;color:var(--muted)}
.confusion span{display:block;border-radius:6px;padding:6px 10px;min-width:64px;line-height:1.2}
.confusion small{display:block;opacity:.85}
.confusion .right{background:rgba(var(--shade),calc(var(--share)*.5))}
.confusion .wrong{background:rgba(var(--bad),calc(var(--share)*.6))}
dl{display:grid;grid-template-columns:minmax(110px,max-content) 1fr;gap:4px 18px;margin:0;font-size:.9rem}
dt{color:var(--muted)}
dd{margin:0}
details summary{cursor:pointer;font-weight:600}
pre{overflow-x:auto;font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;margin:12px 0 0}
pre.wrap{white-space:pre-wrap;margin:0}
code{font:.92em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.note{border-left:4px solid var(--c2);padding-left:12px}
footer{padding:28px 20px 36px;font-size:.85rem}
@media (max-width:900px){#result .grid{grid-template-columns:minmax(0,1fr)}}
@media (max-width:480px){
header,main,footer{padding-left:12px;padding-right:12px}
.card{padding:12px}
.tile b{font-size:1.25rem}
.tiles{grid-template-columns:1fr 1fr}
dl{grid-template-columns:minmax(0,2fr) minmax(0,3fr)}
tbody th{white-space:normal;max-width:9rem}
}
@media print{.card,.tile{break-inside:avoid}nav{display:none}}
"""
)
# Whatever a label or a path in the page should hold, the browser runs nothing and loads nothing.
# Figures wider than this take the whole page, and scroll on a narrow one instead of shrinking beyond reading.
PANORAMA_IN = 6.0
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"


@dataclass(frozen=True)
class Chapter:
    """One heading of the page with its sections, or with HTML of its own in front of them."""

    anchor: str
    title: str
    sections: Sequence[Section]
    lead: str = ""


def page(title: str, head: str, chapters: Sequence[Chapter], foot: str) -> str:
    """The whole page.

    Args:
        title: of the browser's tab; escaped here.
        head: HTML above the chapters.
        chapters: those without content are left out.
        foot: HTML below.
    """
    filled = [chapter for chapter in chapters if chapter.sections or chapter.lead]
    links = "".join(f'<a href="#{c.anchor}">{escape(c.title)}</a>' for c in filled)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            f'<header>{head}<nav aria-label="chapters">{links}</nav></header>',
            "<main>",
            *(chapter_html(chapter) for chapter in filled),
            f"</main><footer>{foot}</footer></body></html>",
            "",
        ]
    )


def chapter_html(chapter: Chapter) -> str:
    """A heading, what leads in, and the sections side by side where there is room."""
    blocks = "".join(section_html(section) for section in chapter.sections)
    grid = f'<div class="grid">{blocks}</div>' if blocks else ""
    return f'<section id="{chapter.anchor}"><h2>{escape(chapter.title)}</h2>{chapter.lead}{grid}</section>'


def section_html(section: Section) -> str:
    """A figure with its caption, or a card of HTML."""
    size = " wide" if section.wide else ""
    title = f"<h3>{escape(section.title)}</h3>" if section.title else ""
    if section.figure is not None:
        caption = f"<figcaption>{escape(section.caption)}</figcaption>" if section.caption else ""
        picture = to_svg(section.figure, section.alt or section.title)
        if section.figure.get_figwidth() > PANORAMA_IN:
            picture = f'<div class="panorama" tabindex="0">{picture}</div>'
        return f'<figure class="card{size}">{title}{picture}{caption}</figure>'
    caption = f'<p class="caption">{escape(section.caption)}</p>' if section.caption else ""
    return f'<div class="card{size}">{title}{section.html}{caption}</div>'
