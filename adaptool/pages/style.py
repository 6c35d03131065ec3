"""How a page looks: one sheet, light and dark, from a phone to a wide screen."""

from __future__ import annotations

HEAT_STEPS = 12
DEPTH_STEPS = 6
COSINE_STEPS = 11
# From faint to strong, each palette one hue of even steps in lightness; dark ones run from the
# surface towards light, so that more is always further away from the paper.
_LIGHT = (
    *("#eaf1fb", "#d6e4f7", "#c0d6f2", "#a8c6ec", "#8fb5e5", "#75a3dc", "#5c90d2", "#457cc4"),
    *("#3268b1", "#24549b", "#194182", "#102f67"),
)
_DARK = (
    *("#1c2636", "#20304a", "#243b5e", "#294773", "#2f5488", "#37629d", "#4171b0", "#5082c2"),
    *("#6494d1", "#7ea8de", "#9dbfe9", "#c4daf5"),
)
_DEPTH_LIGHT = ("#0e8f8a", "#2b82ad", "#5273bd", "#7a61b8", "#9d4d9f", "#b53d78")
_DEPTH_DARK = ("#3fc4ba", "#57b1d9", "#7d9fe6", "#a48ee0", "#c97fcb", "#e2739f")
_COSINE_LIGHT = (
    *("#b3472f", "#cd7258", "#dd9a85", "#e9c0b2", "#f3dfd8", "#f3f3f1", "#d6e4f7", "#a8c6ec"),
    *("#75a3dc", "#457cc4", "#24549b"),
)
_COSINE_DARK = (
    *("#e08a70", "#b9654d", "#8f4b39", "#653629", "#40271f", "#262a31", "#20304a", "#294773"),
    *("#37629d", "#5082c2", "#7ea8de"),
)

_SHEET = """
:root{color-scheme:light dark;--paper:#fcfcfb;--card:#fff;--ink:#1b2430;--soft:#5c6773;
--line:#e3e6ea;--faint:#f2f4f6;--accent:#24549b;--good:#1f7a4d;--warn:#9a6200;--bad:#b3261e;
%(light)s}
@media (prefers-color-scheme:dark){:root{--paper:#0f141b;--card:#161d27;--ink:#e6eaf0;
--soft:#97a3b2;--line:#27313f;--faint:#1b2430;--accent:#8fb8ec;--good:#6fcf97;--warn:#e5b567;
--bad:#f28b82;%(dark)s}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%%}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif}
main{max-width:1120px;margin:0 auto;padding:28px 20px 48px}
h1{font-size:26px;line-height:1.2;margin:0 0 4px;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:21px;margin:44px 0 2px;padding-top:22px;border-top:1px solid var(--line);
overflow-wrap:anywhere}
h3{font-size:16px;margin:30px 0 2px}
h4{font-size:13px;margin:0;font-weight:600;overflow-wrap:anywhere}
p{margin:2px 0 12px;max-width:75ch}
.note{color:var(--soft);font-size:13.5px}
code{font:12.5px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
overflow-wrap:anywhere}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(128px,1fr));gap:1px;
background:var(--line);border:1px solid var(--line);border-radius:10px;overflow:hidden;
margin:16px 0 6px}
.facts div{background:var(--card);padding:11px 14px 10px}
.facts dt{color:var(--soft);font-size:12px}
.facts dd{margin:0;font-size:18px;font-weight:600;overflow-wrap:anywhere;line-height:1.3}
.facts dd small{display:block;font-weight:400;font-size:12.5px;color:var(--soft)}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px;
margin:10px 0 16px}
.card>h4{margin-bottom:6px;font-weight:400}
.heat{display:grid;grid-template-columns:minmax(64px,max-content) minmax(0,1fr) max-content;
column-gap:10px;align-items:center}
.heat .name{font-size:12.5px;line-height:24px;text-align:right;overflow:hidden;
text-overflow:ellipsis;white-space:nowrap;max-width:210px}
.heat .range{font-size:12px;color:var(--soft);line-height:24px;white-space:nowrap;
font-variant-numeric:tabular-nums}
.heat svg{display:block;width:100%%;height:24px}
.heat rect{stroke:var(--card);stroke-width:2;vector-effect:non-scaling-stroke}
.heat rect:hover{stroke:var(--ink)}
.ticks{position:relative;height:18px;font-size:11px;color:var(--soft);grid-column:2}
.ticks span{position:absolute;transform:translateX(-50%%);white-space:nowrap}
.key{display:flex;align-items:center;gap:8px;font-size:12px;color:var(--soft);margin-top:10px;
flex-wrap:wrap}
.key svg{width:168px;height:10px;border-radius:3px;flex:none}
.key svg rect{stroke:none}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(228px,1fr));gap:12px;
margin:10px 0}
.panel{background:var(--card);border:1px solid var(--line);border-radius:10px;min-width:0;
padding:12px 12px 8px}
.panel svg{display:block;width:100%%;height:auto;overflow:visible}
.panel p{margin:0;font-size:12px;color:var(--soft)}
.panel text{font-size:10px;fill:var(--soft)}
.panel .grid{stroke:var(--line);stroke-width:1}
.panel .mark{stroke:var(--soft);stroke-width:1;stroke-dasharray:3 3;opacity:.7}
.panel .axis{stroke:var(--soft);stroke-width:1}
.panel .curve{fill:none;stroke-width:1.1;opacity:.55}
.panel .curve:hover{opacity:1;stroke-width:2.2}
.panel .usual{fill:none;stroke:var(--ink);stroke-width:2}
.panel circle{fill:var(--ink);stroke:var(--card);stroke-width:1.5}
.panel .value{fill:var(--ink);font-weight:600;paint-order:stroke;stroke:var(--card);
stroke-width:3px;stroke-linejoin:round}
.wide{overflow-x:auto;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;width:100%%}
th,td{padding:6px 10px;text-align:right;border-bottom:1px solid var(--line);vertical-align:top;
white-space:nowrap}
th{color:var(--soft);font-weight:600;font-size:12px;vertical-align:bottom}
th:first-child,td:first-child{text-align:left;white-space:normal;overflow-wrap:anywhere;
min-width:120px;padding-left:0}
tbody tr:last-child td{border-bottom:0}
td small{color:var(--soft)}
.matrix{width:auto}
.matrix td,.matrix th{border:0;padding:0}
.matrix th{font-weight:500;color:var(--ink);padding:4px 8px;max-width:150px;
overflow-wrap:anywhere;white-space:normal;text-align:center}
.matrix tbody th{text-align:left;min-width:0;max-width:220px;vertical-align:middle;padding-left:0}
.matrix td{min-width:58px;height:44px;text-align:center;vertical-align:middle;
border:2px solid var(--card);border-radius:4px}
details{margin:10px 0}
summary{cursor:pointer;color:var(--accent);font-size:14px}
ul{list-style:none;padding:0;margin:10px 0}
li{padding:3px 0;font-size:13.5px;overflow-wrap:anywhere}
.error b{color:var(--bad)}.warning b{color:var(--warn)}.note b{color:var(--accent)}
footer{margin-top:44px;padding-top:14px;border-top:1px solid var(--line);color:var(--soft);
font-size:12.5px}
@media (max-width:560px){main{padding:18px 14px 36px}h1{font-size:22px}
.heat{grid-template-columns:minmax(48px,92px) minmax(0,1fr);column-gap:8px}
.heat .range{display:none}.heat .name{font-size:11.5px}.card{padding:12px}
.facts{grid-template-columns:repeat(2,1fr)}.facts dd{font-size:16px}
.matrix td{min-width:46px;height:38px}}
@media print{.card,.panel{break-inside:avoid}details{display:none}}
"""


def sheet() -> str:
    """The page's style sheet, both palettes in it."""
    colours = {
        "light": _variables(_LIGHT, _DEPTH_LIGHT, _COSINE_LIGHT),
        "dark": _variables(_DARK, _DEPTH_DARK, _COSINE_DARK),
    }
    classes = [
        *(f".h{step}{{fill:var(--h{step})}}" for step in range(HEAT_STEPS)),
        *(f".d{step}{{stroke:var(--d{step})}}" for step in range(DEPTH_STEPS)),
        *(f".key .d{step}{{fill:var(--d{step})}}" for step in range(DEPTH_STEPS)),
        *(f".c{step}{{background:var(--c{step})}}" for step in range(COSINE_STEPS)),
        *(f".c{step}{{color:var(--card)}}" for step in (0, 9, 10)),
    ]
    return (_SHEET % colours).strip() + "\n" + "\n".join(classes) + "\n"


def _variables(*palettes: tuple[str, ...]) -> str:
    return "".join(
        f"--{name}{step}:{colour};"
        for name, palette in zip("hdc", palettes, strict=True)
        for step, colour in enumerate(palette)
    )
