"""The review console: someone sees what the worker sent to review, and decides; what they decide is an event.

`feed.py` fills queues in Redis from the verdicts topic, `board.py` gives images to people and takes their decisions
(`scripts.py`: as Lua, in one piece each), `outbox.py` brings those to Kafka once; both go in `rounds.py`. `app.py` is
the web application; `images.py` shows pixels that a confined process decoded. `server.py` runs it all, in any number of
processes.
"""
