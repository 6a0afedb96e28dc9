"""The frozen networks, one file each, behind one interface.

Every encoder is built as `XEncoder(config, device)`, has a fixed `batch`, and offers

    encode(photos, inputs) -> one dict a photo: field -> array

`photos` holds exactly `batch` photographs: the caller pads the last batch, so that a record's bytes do not depend on
its neighbours' number. `inputs[i]` holds the columns of photo i that the stage needs, with their codec undone.
"""
