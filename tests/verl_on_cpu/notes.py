"""What each pass saw, as lines of JSON in the file ``$VERL_ON_CPU_PASSES`` where that is set."""

import json
import os


def note(**entry):
    """One line. Processes may write at the same time: the line is appended by one call."""
    path = os.environ.get("VERL_ON_CPU_PASSES")
    if path:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, json.dumps(entry).encode() + b"\n")
        os.close(file)


def of_rows(data):
    """Of a batch that goes into the model: how many rows and tokens, and for each row its prompt, its answer, how many
    of the answer's tokens count, and their advantages (updates only)."""
    names = ("prompts", "responses", "loss_mask", "advantages")
    columns = [data[name].unbind() if name in data.keys() else [None] * len(data) for name in names]
    return {
        "rows": len(data),
        "tokens": data["input_ids"].values().numel(),
        "seen": [
            {
                "prompt": prompt.tolist(),
                "answer": answer.tolist(),
                "counts": int(counts.sum()),
                "advantages": None if advantages is None else advantages.tolist(),
            }
            for prompt, answer, counts, advantages in zip(*columns, strict=True)
        ],
    }
