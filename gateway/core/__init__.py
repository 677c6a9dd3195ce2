"""Domain types, errors, settings and Protocols that every other package builds on.

Imports nothing from the rest of the gateway. Start with `model`, then `interfaces`: the Protocols through which the
layers above see stores, engines and clocks.
"""
