"""Bad inputs made by code, and the means to put each of them through a command.

commands.py     runs `weakmcn` in processes of bounded memory and time, and measures them
sound.py        the small sound data set, store and run that everything here is a damaged copy of
photos.py       photographs that are cut short, disguised, oversized, turned
annotations.py  references, boxes, masks and files of annotations
weights.py      checkpoints of frozen networks
stores.py       stores and runs
lines.py        command lines
bombs.py        small files that claim to be large
payloads.py     files that run code where a careless reader opens them
"""
