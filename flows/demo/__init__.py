"""The demo: everything with real parts on this machine, from past events to an audited live stream"""
