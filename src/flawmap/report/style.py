"""The style sheet of the page: light and dark, wide and narrow, screen and paper.

Blue is good and orange is defect, which all common kinds of colour vision tell apart.
"""

from flawmap.report.pictures import css_gradient

_LIGHT = """
--page:#f6f7f9;--card:#fff;--ink:#16202b;--quiet:#5a6775;--line:#dfe4ea;--grid:#e9edf1;
--good:#1a6fb5;--defect:#d1600a;--accent:#1a6fb5;--curve:#1a3f66;--area:#1a6fb51a;
--warn-page:#fff4e5;--warn-line:#e8a33d;--tint:#eef4fa;
--shadow:0 1px 2px #10203014,0 4px 16px #1020300a;
"""

_DARK = """
--page:#10151b;--card:#19212a;--ink:#e8edf2;--quiet:#9aa8b6;--line:#2d3945;--grid:#26313c;
--good:#62aef0;--defect:#ff9b4a;--accent:#7cbcf5;--curve:#a9d1f7;--area:#62aef024;
--warn-page:#33270f;--warn-line:#b5802c;--tint:#1d2a37;
--shadow:none;
"""

STYLE = (
    f":root{{{_LIGHT}}}@media screen and (prefers-color-scheme:dark){{:root{{{_DARK}}}}}"
    + """
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%;overflow-wrap:break-word}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Noto Sans",
"DejaVu Sans",sans-serif;
font-variant-numeric:tabular-nums}
header.top,main{max-width:1200px;margin:0 auto;padding:0 24px}
header.top{padding-top:36px}
p{margin:0 0 .6em}
a{color:var(--accent)}
.skip{position:absolute;left:-999px}.skip:focus{left:8px;top:8px;background:var(--card);padding:8px}
.brand{font-weight:700;letter-spacing:.02em;color:var(--accent);margin:0}
.brand span{font-weight:400;color:var(--quiet)}
h1{font-size:clamp(28px,4.2vw,42px);line-height:1.15;margin:.15em 0;letter-spacing:-.015em;
overflow-wrap:anywhere}
h2{font-size:24px;line-height:1.25;margin:0 0 .5em;letter-spacing:-.01em;overflow-wrap:anywhere}
h3{font-size:18px;margin:1.8em 0 .5em}
h4{font-size:16px;margin:0}
.quiet,small{color:var(--quiet)}
.quiet{font-size:14px}
.verdict{font-size:clamp(19px,2.3vw,25px);line-height:1.4;margin:.9em 0;max-width:46em}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:16px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:16px 18px;
box-shadow:var(--shadow)}
.tile p{margin:0}
.tile-label{font-size:14px;color:var(--quiet);font-weight:600}
.tile-value{font-size:36px;line-height:1.25;font-weight:700;letter-spacing:-.02em}
.unit{font-size:.55em;font-weight:600;color:var(--quiet);margin-left:2px}
.tile-words{font-size:13.5px;line-height:1.45;color:var(--quiet)}
.promise{margin:16px 0 0;padding:12px 18px;border-radius:10px;background:var(--tint);
border-left:4px solid var(--accent);font-size:15px}
.promise.warn{background:var(--warn-page);border-color:var(--warn-line)}
nav ul{list-style:none;margin:28px 0 0;padding:0;display:flex;flex-wrap:wrap;gap:8px}
nav a{display:block;padding:5px 14px;border:1px solid var(--line);border-radius:99px;
background:var(--card);text-decoration:none;font-size:15px;overflow-wrap:anywhere}
nav a:hover{border-color:var(--accent)}
main>section{background:var(--card);border:1px solid var(--line);border-radius:14px;
padding:24px 26px;margin:24px 0;box-shadow:var(--shadow);scroll-margin-top:12px}
.scroll{overflow-x:auto;margin:0 0 12px}
table{border-collapse:collapse;width:100%;font-size:15px}
th,td{padding:8px 10px;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
thead th{font-size:13.5px;font-weight:600;color:var(--quiet);vertical-align:bottom;
white-space:nowrap}
tbody th{font-weight:600;min-width:7em}
tbody th bdi{display:inline-block;max-width:18em;overflow-wrap:anywhere}
tbody tr:hover{background:var(--tint)}
tfoot th,tfoot td{font-weight:700;border-bottom:0;border-top:2px solid var(--line)}
td.n,th.n{text-align:right;white-space:nowrap}
th[scope=colgroup]{text-align:center;border-bottom:0;padding-bottom:0}
.edge{border-left:1px solid var(--line)}
td small{display:block;font-size:12.5px;line-height:1.35}
tr.now td{font-weight:700}
td.words{font-size:13.5px;color:var(--quiet);min-width:17em}
th.words{white-space:normal}
abbr{text-decoration:none;color:var(--quiet);cursor:help}
sup{line-height:0;font-size:.7em;margin-left:1px}
.reasons{list-style:none;margin:0;padding:0;font-size:13.5px;color:var(--quiet)}
table.narrow{width:auto;min-width:min(100%,620px)}
td.bar-cell{width:170px;vertical-align:middle}
.meter{display:block;height:8px;border-radius:4px;background:var(--grid);overflow:hidden;
min-width:90px}
.meter i{display:block;height:100%;background:var(--accent);border-radius:4px}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(290px,1fr));gap:20px;
margin-top:14px}
.plot{margin:0;min-width:0;max-width:520px}
.plot figcaption{display:flex;flex-wrap:wrap;gap:8px;align-items:baseline;font-size:15px}
.plot figcaption span{color:var(--quiet)}
.plot.none{color:var(--quiet);align-self:center;grid-column:span 2;max-width:none}
.steps{display:flex;flex-wrap:wrap;gap:10px;margin:0 0 14px}
.steps figure{margin:0}.steps img{display:block;border-radius:3px;max-width:160px}
.steps figcaption{font-size:13px;color:var(--quiet)}
.chart{display:block;width:100%;height:auto;overflow:visible}
.chart text{fill:var(--quiet);font-size:11.5px;font-family:inherit}
.chart .label{font-size:12px;fill:var(--ink)}
.chart .axis,.chart .tick{stroke:var(--quiet);fill:none}
.chart .grid{stroke:var(--grid);fill:none}
.chart .chance{stroke:var(--quiet);stroke-dasharray:2 4;fill:none}
.chart .curve{stroke:var(--curve);stroke-width:2.2;fill:none;stroke-linejoin:round}
.chart .area{fill:var(--area)}
.chart .point{fill:var(--curve)}
.chart .operating{fill:var(--defect);stroke:var(--card);stroke-width:2}
.chart .operating-text,.chart .threshold-text,.chart .kind{fill:var(--ink);font-weight:600;
paint-order:stroke;stroke:var(--card);stroke-width:4px;stroke-linejoin:round}
.chart .good{fill:var(--good)}.chart .defect{fill:var(--defect)}
.chart .good-text{fill:var(--good)}.chart .defect-text{fill:var(--defect)}
.chart .wrong{fill:url(#hatch)}
.chart .threshold{stroke:var(--ink);stroke-width:1.6;stroke-dasharray:5 3;fill:none}
.hatch{position:absolute;width:0;height:0}
.hatch path{stroke:var(--card);stroke-width:2.2}
.toggle{display:inline-flex;gap:7px;align-items:center;margin:0 20px 10px 0;font-size:14px;
cursor:pointer}
.toggle input{accent-color:var(--accent);width:16px;height:16px;margin:0}
.category:has(.show-mask:not(:checked)) .pic :is(.mask,.mask-halo){display:none}
.category:has(.show-box:not(:checked)) .pic :is(.box,.box-halo){display:none}
.legend{display:flex;flex-wrap:wrap;gap:8px 26px;align-items:center;font-size:13.5px;
color:var(--quiet);margin-bottom:6px}
.legend-item{display:flex;align-items:center;gap:8px}
.key{display:grid;row-gap:5px;grid-template-columns:repeat(3,auto);justify-content:space-between;
width:330px;max-width:100%;line-height:1.3}
.key b{color:var(--ink)}
.key span:nth-child(3){text-align:center}.key span:nth-child(4){text-align:right}
.bar{grid-column:1/-1;height:10px;border-radius:5px;border:1px solid var(--line);
background:HEAT_GRADIENT}
.swatch-mask,.swatch-box{width:22px;height:14px;background:#444;border-radius:2px;
outline:2px solid #3fe0e8;outline-offset:-3px}
.swatch-box{outline:2px dashed #fff}
.group{margin-top:22px}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr));gap:16px}
.cards.wide{grid-template-columns:repeat(auto-fill,minmax(min(100%,660px),1fr))}
.card{margin:0;border:1px solid var(--line);border-radius:10px;overflow:hidden;
display:flex;flex-direction:column;break-inside:avoid;background:var(--page)}
.pair{flex:1;display:grid;grid-template-columns:1fr 1fr;gap:3px;align-items:center;
background:var(--grid);padding:4px}
.pair.three{grid-template-columns:1fr 1fr 1fr}
.panel .what{display:block;text-align:center;font-size:13px;color:var(--quiet);margin-top:2px}
.pic{position:relative;display:block;margin:auto;width:min(100%,calc(320px*var(--ratio)));
aspect-ratio:var(--ratio)}
.pic img{display:block;width:100%;height:100%;border-radius:3px}
.pic svg{position:absolute;inset:0;width:100%;height:100%;transition:opacity .15s}
.pic:hover svg{opacity:.08}
.pic path,.pic rect{fill:none;vector-effect:non-scaling-stroke;stroke-linecap:square}
.mask{stroke:#3fe0e8;stroke-width:1.4}.mask-halo{stroke:#00000090;stroke-width:3}
.box{stroke:#fff;stroke-width:1.4;stroke-dasharray:4 4;stroke-linecap:butt}
.pic .box{stroke-linecap:butt}.box-halo{stroke:#00000080;stroke-width:2.6}
figcaption .line{display:flex;flex-wrap:wrap;justify-content:space-between;gap:2px 14px}
.card figcaption{padding:8px 12px 10px;font-size:14px;line-height:1.45}
.hint{display:block;font-size:13px;font-weight:600;margin-top:2px}
.hint::before{content:"⚠ "}
.file{display:block;font-size:12.5px;color:var(--quiet);overflow-wrap:anywhere}
.truth::before{content:"";display:inline-block;width:10px;height:10px;margin-right:6px;
background:var(--good);border-radius:50%}
.truth.defect::before{background:var(--defect);border-radius:2px;transform:rotate(45deg)}
.truth{font-weight:600}
.score strong{white-space:nowrap;margin-left:4px}
.score .right{color:var(--good)}.score .error{color:var(--defect)}
.missing{grid-column:1/-1;color:var(--quiet);font-size:14px;padding:24px;margin:0;text-align:center}
details{border-top:1px solid var(--line)}
details:last-child{border-bottom:1px solid var(--line)}
summary{cursor:pointer;padding:12px 4px;font-weight:600}
summary:hover{color:var(--accent)}
.fold{padding:0 4px 16px}
.fold ul{margin:0;padding-left:20px;overflow-wrap:anywhere}
table.facts{width:auto}
.facts th{color:var(--quiet);font-weight:500;min-width:14em}
.facts td{overflow-wrap:anywhere}
.facts th,.facts td{padding:5px 12px 5px 0;font-size:14.5px}
pre{background:var(--page);border:1px solid var(--line);border-radius:8px;padding:14px;
overflow-x:auto;font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",
monospace;margin:0}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px}
@media (max-width:860px){.tiles{grid-template-columns:1fr 1fr}}
@media (max-width:560px){
header.top,main{padding:0 12px}header.top{padding-top:20px}
main>section{padding:18px 14px;border-radius:10px;margin:16px 0}
.tiles{gap:10px}.tile{padding:12px 13px}.tile-value{font-size:28px}.tile-words{font-size:12.5px}
thead th:first-child,tbody th,tfoot th{position:sticky;left:0;background:var(--card)}
.scroll tbody th bdi{max-width:8em}
table.narrow{min-width:0;width:100%}.bar-cell{display:none}
td.words{min-width:26em}
.facts,.facts tbody,.facts tr,.facts th,.facts td{display:block;position:static}
.facts th{border:0;padding-bottom:0}.plot.none{grid-column:auto}
.pic{width:min(100%,calc(240px*var(--ratio)))}}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}.pic svg{transition:none}}
@media print{
@page{margin:14mm}
body{background:#fff;font-size:11pt;-webkit-print-color-adjust:exact;print-color-adjust:exact}
header.top,main{max-width:none;padding:0}
main>section{border:0;padding:0;box-shadow:none}
.tiles{grid-template-columns:repeat(4,1fr);gap:8px}
.tile{box-shadow:none;break-inside:avoid;padding:10px 12px}.tile-value{font-size:24pt}
nav,.toggle,.skip{display:none}
.category{break-before:page}
h2,h3,h4{break-after:avoid}
table,.scroll{font-size:9pt;overflow:visible}th,td{padding:4px 5px}
.plots{grid-template-columns:repeat(3,1fr)}
.cards{grid-template-columns:1fr 1fr;gap:10px}
.group{break-inside:avoid;margin-top:14px}
.pic{width:min(100%,calc(150px*var(--ratio)))}
.card figcaption{padding:4px 8px;font-size:8.5pt}.file,.hint{font-size:8pt}
tr,.plot{break-inside:avoid}
pre{white-space:pre-wrap}
details::details-content{content-visibility:visible;block-size:auto}}
""".replace("HEAT_GRADIENT", css_gradient())
)
