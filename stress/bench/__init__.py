"""The benchmark: threadmail beside its peers, on one machine and in one run. `python -m stress.bench --help`.

| module | owns |
|---|---|
| `line`, `linecheck` | the delay line: a wire of a known round-trip time; and the proof that it is one |
| `servers` | what is sent to, and how much of it arrived |
| `tools` | peers that have to be fetched, and why one could not be had |
| `job` | what one run is given, and the clock that it carries |
| `client`, `nodemailer.cjs` | the programs that are measured, one run each |
| `peers` | who there is, and how each is started |
| `running` | one run: time, CPU, memory, delivered messages |
| `plan`, `growth` | what is measured |
| `rounds` | rounds in shuffled order, and the results they leave |
| `figures` | medians, paired ratios, slopes |
| `against` | the rows of two commits, in turn |
| `targets` | what was promised, and whether it is kept |
| `table`, `plots` | the page and its pictures |
"""
