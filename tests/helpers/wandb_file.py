"""Reads back what wandb wrote offline: its own file, record by record."""

import json
import struct
import time


def records(path):
    """The protobuf records of a .wandb file: LevelDB framing behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, buffer = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        if kind == 0 or position + 7 + length > len(data):
            return
        buffer += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(buffer)
            buffer = b""
            yield record


def items(updates):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}


def contents(folder):
    """What the file says once its last record, the exit, is there: wandb's own process writes it when it likes."""
    (file,) = folder.rglob("*.wandb")
    for _ in range(6000):
        found = parsed(file)
        if found["exit"] is not None:
            break
        time.sleep(0.02)
    return found


def parsed(file):
    found = {"history": [], "summary": {}, "config": {}, "run": None, "exit": None}
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            found["history"].append(items(record.history.item))
        elif kind == "summary":
            found["summary"] |= items(record.summary.update)
        elif kind == "run":
            found["run"] = record.run
            found["config"] |= items(record.run.config.update)
        elif kind == "config":
            found["config"] |= items(record.config.update)
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found
