"""The console's files, as browsers get them: `static` is ours, plain ES modules; `vendor` is xterm.js and uPlot.

There is no build: api/console.py serves the files as they are. vendor/LICENSES.txt names versions and licences.
"""
