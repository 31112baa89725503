import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import yaml
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from feedback_transformer_pytorch import FeedbackTransformer, InputError, cli
from feedback_transformer_pytorch.data import BpeTokenizer, ByteTokenizer, train_bpe
from feedback_transformer_pytorch.hf import FeedbackTransformerForCausalLM, FeedbackTransformerModel, export_run
from feedback_transformer_pytorch.hf.tokenizer import as_pretrained
from feedback_transformer_pytorch.training.models.architectures import build_model
from feedback_transformer_pytorch.training.options import TrainOptions
from feedback_transformer_pytorch.training.saving.run import Run

X = torch.arange(2 * 13).reshape(2, 13)
# Every byte that UTF-8 has, the padding's character, and spaces that a clean-up would drop.
TEXTS = ["".join(map(chr, range(0x180))), "Ā is no padding .  Nor is \u0100 , \U0001f600\n\n ' s", ""]


def make_text(folder: Path) -> Path:
    path = folder / "the text.txt"
    path.write_text("one sheep, two sheep, three sheep. " * 50)
    return path


def make_run(path: Path, tokenizer: str = "bytes", **options: Any) -> Run:
    """A run as `train` leaves it, of random weights."""
    source = make_text(path.parent)
    tokens = train_bpe([str(source)], 300) if tokenizer == "bpe" else ByteTokenizer()
    fields = {"dim": 16, "depth": 2, "heads": 2, "dim_head": 8, "mem_len": 8, "seq_len": 4, "block_len": 16}
    run = Run.create(TrainOptions(files=[str(source)], out=str(path), **{**fields, **options}), tokens)
    torch.manual_seed(0)
    run.save_weights(build_model(run.options, tokens.num_tokens).state_dict())
    run.log({"kind": "validation", "update": 1, "tokens": 512, "bits_per_byte": 7.5, "sample": "o"})
    run.log({"kind": "validation", "update": 20, "tokens": 10240, "bits_per_byte": 3.21987, "sample": "one"})
    return run


def model_of(run: Run) -> FeedbackTransformer:
    model = run.load_model(run.tokenizer().num_tokens)
    assert isinstance(model, FeedbackTransformer)
    return model


def test_a_run_loads_directly(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for path in (run.path, str(run.path)):
        model = FeedbackTransformerForCausalLM.from_pretrained(path)
        torch.testing.assert_close(model(X[:, :12]).logits, model_of(run)(X[:, :12]))
    assert FeedbackTransformerForCausalLM.from_pretrained(run.path, dtype=torch.bfloat16).dtype == torch.bfloat16
    base = FeedbackTransformerModel.from_pretrained(run.path)
    torch.testing.assert_close(base(X).last_hidden_state, model.model(X).last_hidden_state)


def test_arguments_change_the_configuration_of_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    model = FeedbackTransformerForCausalLM.from_pretrained(run.path, mem_len=20, use_cache=False, eos_token_id=10)
    assert model.model.decoder.config.mem_len == 20
    assert (model.config.use_cache, model.config.eos_token_id) == (False, 10)
    for name in ("config", "state_dict"):
        with pytest.raises(InputError, match=f"{name} is given with a RUN, which has its own"):
            FeedbackTransformerForCausalLM.from_pretrained(run.path, **{name: getattr(model, name)})


def test_a_tokenizer_of_another_program_encodes_as_in_training(tmp_path: Path) -> None:
    """It has a token of its own inside texts, and puts one before them, which training does not."""
    backend = tokenizers.Tokenizer.from_str(train_bpe([str(make_text(tmp_path))], 300).to_json())
    backend.add_special_tokens(["<s>", "<|eot|>"])
    backend.post_processor = processors.TemplateProcessing(
        "<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    ours, theirs = BpeTokenizer(backend.to_str()), as_pretrained(backend)
    for text in ("one sheep", "one<|eot|>two", *TEXTS):
        assert theirs(text)["input_ids"] == ours.encode(text).tolist()
        assert theirs.decode(theirs(text)["input_ids"]) == text
    batch = theirs(["one sheep", "one"], padding=True)
    assert theirs.batch_decode(batch["input_ids"], skip_special_tokens=True) == ["one sheep", "one"]


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_an_exported_run_loads_and_writes(tmp_path: Path, tokenizer: str) -> None:
    run = make_run(tmp_path / "run", tokenizer)
    export_run(run.path, tmp_path / "shared")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "shared")
    torch.testing.assert_close(model(X[:, :12]).logits, model_of(run)(X[:, :12]))
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "shared"), run.tokenizer()
    assert len(theirs) == ours.num_tokens
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ids == ours.encode(text).tolist()
        assert theirs.decode(ids) == text
    batch = theirs(["three", "one sheep, two"], return_tensors="pt", padding=True)
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]
    written = model.generate(**batch, max_new_tokens=9, do_sample=False)
    for row, text in enumerate(["three", "one sheep, two"]):
        alone = model.generate(**theirs(text, return_tensors="pt"), max_new_tokens=9, do_sample=False)
        assert torch.equal(written[row, -9:], alone[0, -9:])
    writer = pipeline("text-generation", model=model, tokenizer=theirs)
    (answer,) = writer("one sheep", max_new_tokens=9, do_sample=False)
    assert answer["generated_text"].startswith("one sheep")
    assert {"README.md", "chat_template.jinja", "generation_config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in (tmp_path / "shared").iterdir()
    }


def test_the_card_states_data_figures_and_training(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    export_run(run.path, tmp_path / "shared")
    card = (tmp_path / "shared" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "transformers"
    count = sum(parameter.numel() for parameter in model_of(run).parameters())
    for text in (
        "# shared",
        f"{count:,}\nparameters",
        "transformers serve shared --trust-remote-code",
        "Trained on: `the text.txt`",
        "Tokens: bytes of UTF-8",
        "| update | tokens | bits_per_byte |",
        "| 20 | 10240 | 3.22 |",
        "| `lr` | 0.002 |",
        "| `mem_len` | 8 |",
    ):
        assert text in card
    assert str(tmp_path) not in card


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "a" / "shared").mkdir(parents=True)
    assert cli.main(["export", str(run.path), "--to", str(tmp_path / "a" / "shared")]) == 0
    assert capsys.readouterr().out.endswith("shared\n")
    assert (tmp_path / "a" / "shared" / "config.json").is_file()
    assert [folder.name for folder in (tmp_path / "a").iterdir()] == ["shared"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "parallel"}, "holds a model of the kind 'parallel', which has no class in transformers"),
        ({"task": "s3", "files": []}, "was trained on labels, and a language model predicts the next token"),
    ],
)
def test_a_run_of_another_kind_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], message: str
) -> None:
    values = TrainOptions(out=str(tmp_path / "run"), **options).to_dict()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=message):
        FeedbackTransformerForCausalLM.from_pretrained(tmp_path / "run")
    assert cli.main(["export", str(tmp_path / "run"), "--to", str(tmp_path / "shared")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "shared").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert cli.main(["export", str(run.path), "--to", str(tmp_path / "full")]) == 2
    assert "exists and is no empty directory" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path), "--to", str(tmp_path / "shared")]) == 2
    assert "is not a RUN directory" in capsys.readouterr().err


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "feedback_transformer_pytorch.hf")
    assert cli.main(["export", "run", "--to", "shared"]) == 2
    error = capsys.readouterr().err
    assert "transformers is not installed; it comes with the 'hf' extra" in error
    assert error.count("\n") == 1
