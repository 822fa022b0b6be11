"""The style sheet of the app's page, for both of its tabs, light and dark, wide and narrow.

Gradio writes each rule anew and loses a border whose colour is a variable in a short form: hence
the long ones. Names like ``--body-text-color`` are Gradio's, all others ours.
"""

STYLE = """
.gradio-container { --real: #2563a8; --generated: #c2571a; --unsure: #c9a227; --doubt: #80640a;
  --dim: #5a6472; --rim: #d5dae1; --soft: #eef0f3; --on-tone: #fff; width: 100%;
  max-width: 66rem !important; margin: 0 auto !important;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif !important; }
.dark .gradio-container, .gradio-container.dark { --real: #7db3ef; --generated: #f3a06b;
  --unsure: #c9a227; --doubt: #e2bd4b; --dim: #a3abb8; --rim: #3b424d; --soft: #262b33;
  --on-tone: #14171c; }
.gradio-container .html-container { padding: 0 !important; }
.gradio-container button[role=tab] { color: var(--dim) !important; }
.gradio-container button[role=tab][aria-selected=true] { color: var(--body-text-color) !important;
  font-weight: 600; }
.aion { color: var(--body-text-color); font-size: 1rem; line-height: 1.5; font-family:
  system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
.aion h1 { font-size: 1.5rem; line-height: 1.2; margin: 0; font-weight: 650; }
.aion h2 { font-size: 1.1rem; margin: 1.4rem 0 .5rem; font-weight: 650; }
.aion p { margin: .35rem 0; max-width: 46rem; color: inherit; }
.aion p.dim, .aion .dim { color: var(--dim); font-size: .88rem; }
.aion code { font: .86em/1.4 ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere;
  background: none; border: 0; padding: 0; color: inherit; }
.aion .empty { border: 1px dashed var(--rim); border-radius: .6rem; padding: 2rem 1.2rem;
  text-align: center; }
.aion .empty p { margin: .35rem auto; color: var(--dim); }
.aion .answer { border-style: solid; border-width: 1px 1px 1px .4rem;
  border-color: var(--rim) var(--rim) var(--rim) var(--tone); border-radius: .6rem;
  padding: 1rem 1.2rem; }
.aion .real { --tone: var(--real); } .aion .generated { --tone: var(--generated); }
.aion .unsure { --tone: var(--doubt); } .aion .broken { --tone: var(--dim); }
.aion .word { font-size: 2rem; line-height: 1.15; font-weight: 700; color: var(--tone); margin: 0; }
.aion .share { font-weight: 600; font-variant-numeric: tabular-nums; }
.aion .gauge { position: relative; height: .6rem; border-radius: .3rem; margin: 1.1rem 0 .5rem; }
.aion .gauge .cut { position: absolute; top: -.2rem; bottom: -.2rem; width: 2px;
  background: var(--body-text-color); transform: translateX(-1px); }
.aion .gauge .dot { position: absolute; top: 50%; width: 1.1rem; height: 1.1rem;
  border-radius: 50%; transform: translate(-50%, -50%); background: var(--body-text-color);
  border: 3px solid var(--body-background-fill); box-shadow: 0 0 0 2px var(--body-text-color); }
.aion .ends { position: relative; display: flex; justify-content: space-between;
  font-size: .8rem; color: var(--dim); }
.aion .ends .at { position: absolute; transform: translateX(-50%); white-space: nowrap; }
.aion details { margin-top: .7rem; font-size: .88rem; }
.aion summary { cursor: pointer; color: var(--dim); padding: .2rem 0; }
.aion dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .9rem;
  margin: .4rem 0 0; }
.aion dt { color: var(--dim); font-weight: 400; } .aion dd { margin: 0; min-width: 0; }
.aion .shown { display: block; width: 100%; max-width: 28rem; border-radius: .5rem; margin: 0; }
.aion .coarse { image-rendering: pixelated; }
.aion .key { margin-right: 1rem; white-space: nowrap; font-size: .88rem; }
.aion .key::before { content: ""; display: inline-block; width: .75em; height: .75em;
  border-radius: 2px; margin-right: .4em; background: var(--tone); }
.aion .count { display: flex; justify-content: space-between; font-size: .88rem;
  color: var(--dim); margin-bottom: .35rem; font-variant-numeric: tabular-nums; }
.aion .bar { height: .4rem; border-radius: .2rem; background: var(--soft); overflow: hidden; }
.aion .bar i { display: block; height: 100%; background: var(--dim); }
.aion .stage { display: flex; justify-content: center; background: var(--soft);
  border-radius: .6rem; padding: .6rem; margin-top: .7rem; }
.aion .stage img { width: min(100%, 56vh); aspect-ratio: 1; object-fit: contain; margin: 0;
  border-radius: .3rem; }
.aion .scroll { overflow-x: auto; }
.aion table { border-collapse: collapse; border-style: none; border-width: 0; font-size: .95rem;
  width: auto; margin: 0; }
.aion tr { border: 0; background: none; }
.aion th, .aion td { text-align: right; padding: .45rem 0 .45rem 2rem;
  border-style: solid; border-width: 0 0 1px; border-color: var(--rim); vertical-align: top;
  font-variant-numeric: tabular-nums; background: none; color: inherit; }
.aion th { color: var(--dim); font-weight: 600; }
.aion th:first-child, .aion td:first-child { text-align: left; padding-left: 0; }
.aion td b { font-size: 1.15rem; }
.aion td small { display: block; color: var(--dim); font-size: .8rem; white-space: nowrap; }
.aion .grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.2rem, 1fr));
  gap: .8rem; margin: .6rem 0 1rem; }
.aion figure { margin: 0; border-style: solid; border-width: 1px 1px .25rem;
  border-color: var(--rim) var(--rim) var(--tone); border-radius: .5rem; overflow: hidden; }
.aion figure img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; margin: 0;
  border-radius: 0; background: var(--soft); }
.aion figcaption .dim { font-size: .75rem; }
.aion figcaption { font-size: .8rem; line-height: 1.4; padding: .35rem .5rem .45rem;
  overflow-wrap: anywhere; }
#answers { position: sticky; bottom: 0; z-index: 5; padding: .6rem 0; gap: .6rem;
  background: var(--body-background-fill); flex-wrap: nowrap; }
#answers button { min-width: 0; font-size: 1.05rem; padding: .85rem .5rem; }
#answers button, #begin, #again { color: var(--on-tone); border-radius: .5rem; border: 0; }
#answer-real { background: var(--real); } #answer-generated { background: var(--generated); }
#begin, #again { background: var(--body-text-color); color: var(--body-background-fill);
  max-width: 16rem; }
@media (max-width: 40rem) { .aion .word { font-size: 1.7rem; }
  .aion th, .aion td { padding-left: .9rem; } .aion .answer { padding: .8rem .9rem; }
  .gradio-container .main { padding: 1rem .9rem !important; } }
"""
