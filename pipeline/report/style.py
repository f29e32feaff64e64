"""How the report looks: on a screen, light or dark, on a phone, and on paper."""

from typing import Final

NUM_COLOURS: Final = 8
"""Of stages; classes ``c0`` to ``c7``."""

STYLE: Final = (
    """
:root{color-scheme:light dark;--page:#fff;--ink:#1d2430;--soft:#5c6675;--line:#d9dee6;--band:#f3f5f8;--bad:#c2261d;
--good:#1a7f4b;--c0:#2f6fb5;--c1:#d97a1e;--c2:#3b9a6d;--c3:#8a5cb8;--c4:#b8487c;--c5:#5f8a1f;--c6:#2a9aa8;--c7:#8a6d4a}
@media (prefers-color-scheme:dark){:root{--page:#14181f;--ink:#e6e9ee;--soft:#9aa5b4;--line:#343c48;--band:#1d232c;
--bad:#ff7a70;--good:#5ccf94;--c0:#6aa5e8;--c1:#f0a04b;--c2:#5fc596;--c3:#b48ce0;--c4:#e07bab;--c5:#9cc452;--c6:#5cc7d4;
--c7:#c4a27a}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1080px;margin:0 auto;padding:24px 20px 60px}
h1{font-size:26px;margin:0;overflow-wrap:anywhere}
h2{font-size:18px;margin:38px 0 8px}
p{margin:6px 0;max-width:80ch}
.soft,figcaption,caption{color:var(--soft)}
.where{overflow-wrap:anywhere;font-size:13px}
.state{display:inline-block;padding:1px 10px;border-radius:12px;border:1px solid;font-size:14px;vertical-align:4px;
margin-left:8px}
.finished{color:var(--good)}.interrupted,.incomplete{color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:18px 0}
.tile{background:var(--band);border-radius:8px;padding:10px 14px}
.tile b{display:block;font-size:18px;font-weight:600}
.tile span{color:var(--soft);font-size:13px}
figure{margin:10px 0}
.wide{overflow-x:auto}
.wide>svg{min-width:720px}
svg{display:block;width:100%;height:auto;font:11px system-ui,-apple-system,"Segoe UI",sans-serif}
svg text{fill:var(--ink)}svg .soft{fill:var(--soft)}
svg .grid{stroke:var(--line);stroke-width:1;fill:none}
svg .band{fill:var(--band)}
svg .gap{fill:none;stroke:var(--soft);stroke-dasharray:3 3}
svg .halo{fill:var(--page);fill-opacity:.85}
svg .failed path{stroke:var(--bad);stroke-width:1.8;fill:none}
svg .lost path{fill:var(--bad)}
svg .bins{fill:none;shape-rendering:crispEdges}
svg .area{fill-opacity:.16;stroke-width:1.5;stroke-linejoin:round}
"""
    + "".join(f".c{one}{{--c:var(--c{one})}}" for one in range(NUM_COLOURS))
    + """
svg .task{fill:var(--c);stroke:var(--page);stroke-width:.6}
svg .bins{stroke:var(--c)}
svg .area{fill:var(--c);stroke:var(--c)}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px;margin:4px 0}
.legend i{display:inline-block;width:11px;height:11px;border-radius:2px;background:var(--c);margin-right:6px}
.legend .mark{color:var(--bad);font-weight:700;margin-right:6px}
table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{padding:4px 20px 4px 0;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap;vertical-align:top}
th{color:var(--soft);font-weight:500}
th.text,td.text{text-align:left}
th.long,td.long{text-align:left;white-space:normal;overflow-wrap:anywhere;min-width:220px}
.meter{display:inline-block;width:64px;height:8px;background:var(--band);border-radius:2px;margin-left:8px;
overflow:hidden}
.meter i{display:block;height:100%;background:var(--c0)}
footer{margin-top:40px;font-size:13px;color:var(--soft)}
@media (max-width:600px){main{padding:16px 12px 40px}h1{font-size:21px}body{font-size:14px}}
@media print{main{max-width:none;padding:0}section{break-inside:avoid}h2{break-after:avoid}.wide{overflow:visible}
.wide>svg{min-width:0}table{font-size:10.5px}td,th{white-space:normal;padding-right:10px}.meter{display:none}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
)
"""Nothing in it is fetched."""
