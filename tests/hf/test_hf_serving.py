"""An exported model answers in a conversation: by its chat template, and behind `transformers serve`."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_hf_export import make_run
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.import_utils import is_serve_available

from conftest import make_model
from feedback_transformer_pytorch.hf import FeedbackCache, export_run
from feedback_transformer_pytorch.hf.tokenizer import byte_tokenizer

# A conversation of about 4,000 bytes, in a memory of 8 tokens.
CONVERSATION = [
    {"role": "user" if turn % 2 == 0 else "assistant", "content": f"{turn} sheep came over the hill, and then some. é"}
    for turn in range(81)
]
COUNT = 12


def test_the_chat_template_puts_messages_on_lines() -> None:
    tokenizer = byte_tokenizer()
    lines = "\n".join(message["content"] for message in CONVERSATION[:3])
    assert tokenizer.apply_chat_template(CONVERSATION[:3], tokenize=False) == lines
    asked = tokenizer.apply_chat_template(CONVERSATION[:3], add_generation_prompt=True)
    assert bytes(asked["input_ids"]) == f"{lines}\n".encode()


@pytest.mark.parametrize("seq_len", [1, 4])
def test_a_conversation_keeps_a_state_of_constant_size(seq_len: int) -> None:
    model, tokenizer, cache = make_model(seq_len, vocab_size=256), byte_tokenizer(), FeedbackCache()
    text, sizes = torch.zeros(1, 0, dtype=torch.long), []
    for turn in range(12):
        question = f"{turn} sheep came over the hill.".ljust(64 - COUNT)
        asked = tokenizer.apply_chat_template([{"role": "user", "content": question}], return_tensors="pt")
        text = torch.cat([text, asked["input_ids"]], dim=1)
        text = model.generate(text, past_key_values=cache, max_new_tokens=COUNT, do_sample=False)
        sizes.append(stored_bytes(cache, set()))
    assert cache.get_seq_length() == 12 * 64 - 1
    assert len(set(sizes[1:])) == 1


def stored_bytes(thing: Any, seen: set[int]) -> int:
    """The bytes of all tensors that are reached from `thing`, each storage counted once and whole."""
    if isinstance(thing, torch.Tensor):
        storage = thing.untyped_storage()
        is_new = storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        return storage.nbytes() if is_new else 0
    if isinstance(thing, dict | list | tuple):
        return sum(stored_bytes(part, seen) for part in (thing.values() if isinstance(thing, dict) else thing))
    if id(thing) in seen or not hasattr(thing, "__dict__"):
        return 0
    seen.add(id(thing))
    return stored_bytes(vars(thing), seen)


SERVE = "from transformers.cli.transformers import main; main()"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of `transformers serve` with an exported model, and the model's folder."""
    if not is_serve_available():
        pytest.skip("transformers serve needs more packages: pip install 'transformers[serving]'")
    shared, home = tmp_path / "shared", tmp_path / "home"
    export_run(make_run(tmp_path / "run").path, shared)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ, "HOME": str(home), "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-c", SERVE, "serve", str(shared), "--trust-remote-code"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], env=environment, stdout=log, stderr=log
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, tmp_path / "log")
            yield f"http://127.0.0.1:{port}", shared
        finally:
            process.terminate()
            process.wait(20)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except urllib.error.URLError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(log.read_text())


def ask(address: str, messages: list[dict[str, str]], **options: Any) -> dict[str, Any]:
    body = json.dumps({"messages": messages, "max_tokens": COUNT, "temperature": 0, **options}).encode()
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", body, {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def test_transformers_serve_answers(served: tuple[str, Path]) -> None:
    """Two questions of one long conversation, without and with the first answer in it."""
    address, shared = served
    model, tokenizer = AutoModelForCausalLM.from_pretrained(shared), AutoTokenizer.from_pretrained(shared)
    messages = list(CONVERSATION)
    for _ in range(2):
        answer = ask(address, messages, model=str(shared))
        asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        expected = model.generate(**asked, max_new_tokens=COUNT, do_sample=False)[0, -COUNT:]
        (choice,) = answer["choices"]
        assert choice["message"]["content"] == tokenizer.decode(expected, skip_special_tokens=True)
        assert answer["usage"]["prompt_tokens"] == asked["input_ids"].shape[1] > 3000
        assert answer["usage"]["completion_tokens"] == COUNT
        messages += [choice["message"], {"role": "user", "content": "And then?"}]
