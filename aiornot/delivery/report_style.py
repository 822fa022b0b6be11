"""The part of the style sheet that only a report needs: charts, the funnel, large numbers.

``delivery/report_page.py`` adds it to that of ``data/markup.py``. Dark mode has its own.
"""

STYLE = """
:root { --one: #0072b2; --three: #007f5f; --best: #d55e00; --person: #b8548f;
  --pale: #8d9094; --shade: #0072b222; --shadebest: #d55e0022; --band: #e69f0040; }
@media (prefers-color-scheme: dark) { :root { --one: #56b4e9; --three: #3cc7a0;
  --best: #f0884a; --person: #e08fc0; --pale: #7d8188; --shade: #56b4e933; --shadebest: #f0884a33;
  --band: #e6b04040; } }
nav dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; font-size: .85rem;
  line-height: 1.9; margin: .8rem 0 0; }
nav dt { color: var(--dim); } nav dd { margin: 0; }
nav a { margin-right: .7rem; white-space: nowrap; }
a { color: var(--one); }
h2 { border-top: 1px solid var(--line); padding-top: 1.2rem; }
.tile { flex: 1 1 9.5rem; }
.tile span { display: block; }
.tile b { font-size: 1.7rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(18.5rem, 100%), 1fr));
  gap: .8rem; margin: .6rem 0; }
.plot { background: var(--card); border: 1px solid var(--line); border-radius: .4rem;
  padding: .6rem .7rem; min-width: 0; }
.two { grid-template-columns: repeat(auto-fill, minmax(min(24rem, 100%), 1fr)); }
.plot.wide { max-width: 36rem; }
.plot b { font-size: .9rem; }
.plot svg { display: block; width: 100%; height: auto; margin: .3rem 0; }
.plot text { font-size: 12px; fill: var(--dim); }
.plot text.strong { font-weight: 600; fill: var(--ink); }
.plot text.inside { fill: var(--card); }
.plot polyline, .plot path { fill: none; stroke-width: 1; }
.grid { stroke: var(--line); } .axis { stroke: var(--dim); }
.rung { stroke: var(--dim); stroke-dasharray: 2 3; }
.plot polyline.mark { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 5 3; }
.plot polyline.curve { stroke-width: 1.6; stroke-linejoin: round; }
.plot polyline.pale { stroke-width: 1; }
.plot polyline.best { stroke-width: 2.4; }
.plot polyline.clean { stroke-dasharray: 5 4; opacity: .7; stroke-width: 1; }
polyline.one { stroke: var(--one); } polyline.pale { stroke: var(--pale); }
polyline.best { stroke: var(--best); } polyline.control { stroke: var(--three);
  stroke-dasharray: 6 3; } polyline.baseline { stroke: var(--ink); stroke-dasharray: 2 2; }
polyline.person { stroke: var(--person); } polyline.arm { stroke-dasharray: none; }
.whisker { stroke: var(--one); opacity: .6; }
circle.one, rect.one { fill: var(--one); } circle.pale { fill: var(--pale); }
circle.best { fill: var(--best); } circle.control { fill: var(--three); }
circle.baseline { fill: var(--ink); } circle.person { fill: var(--person); }
circle.hollow { fill: var(--card); stroke: var(--ink); }
polygon.real { fill: var(--real); } polygon.generated { fill: var(--generated); }
polygon.band { fill: var(--band); }
polygon.shade { fill: var(--shade); } polygon.shade.best { fill: var(--shadebest); }
.keys { font-size: .78rem; color: var(--dim); line-height: 1.7; }
.keys span { display: inline-block; margin-right: .9rem; }
.plot .keys svg { display: inline-block; width: 1.65rem; height: .75rem; margin: 0 .35rem 0 0;
  vertical-align: -.1em; }
.share { display: inline-block; width: 8rem; height: .7rem; background: var(--line);
  border-radius: 2px; overflow: hidden; vertical-align: middle; }
.share i { display: block; height: 100%; background: var(--one); }
.share i.pale { background: var(--pale); }
details { margin: .6rem 0; } summary { font-weight: 600; font-size: .95rem; }
@media (min-width: 52rem) { .tile { flex-basis: 13rem; }
  .two .plot text, .wide.plot text { font-size: 9px; } }
@media (max-width: 34rem) { td .dim { display: block; } table { font-size: .8rem; }
  th, td { padding-right: .4rem; } th:last-child, td:last-child { padding-right: 0; }
  th, td:first-child { white-space: normal; } #leaderboards td { white-space: nowrap; }
  .tile { flex-basis: 8rem; }
  .tile b { font-size: 1.4rem; }
  .share { width: 4rem; } nav dl { display: block; } nav dt { margin-top: .3rem; } }
@media print { nav { display: none; } .charts, .two { grid-template-columns: 1fr 1fr; }
  .plot text { font-size: 10px; } .plot.wide { max-width: 12cm; } .tile b { font-size: 1.2rem; } }
"""
