"""The model in the classes of `transformers`."""

from __future__ import annotations

import os
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from ..checks import check_tokens
from ..decoder import FeedbackDecoder
from ..errors import InputError
from .cache import FeedbackCache
from .configuration import FeedbackTransformerConfig
from .from_run import config_and_weights, is_run, open_text_run
from .reading import read_documents, read_whole

# The name under which a model that is being made holds a decoder to start parameters from.
_FRESH = "_fresh_decoder"
# Fields of a configuration that `PreTrainedModel.from_pretrained` reads itself.
_OF_LOADING = {"dtype", "torch_dtype"}


class FeedbackTransformerPreTrainedModel(PreTrainedModel):
    """What the classes share: how weights are made and loaded."""

    config_class = FeedbackTransformerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _input_embed_layer = "token_emb"
    _no_split_modules = ["FeedbackDecoder"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *model_args: Any, **kwargs: Any
    ) -> Self:
        """As `PreTrainedModel.from_pretrained`; the path may also be a RUN of `feedback-transformer train`.

        Raises:
            InputError: the RUN cannot be used (`open_text_run`), or comes with a configuration or weights of another;
                or the weights are to be quantised.
        """
        if kwargs.get("quantization_config") is not None:
            raise InputError(
                "quantization_config is given, but the fast recurrence reads its weights as plain tensors, and would "
                "fall back to the slow definition for quantised ones; leave it out, or give dtype=torch.bfloat16 for "
                "weights of half the size"
            )
        if is_run(pretrained_model_name_or_path):
            kwargs = _with_run(str(pretrained_model_name_or_path), kwargs)
            pretrained_model_name_or_path = None
        found = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        for model in (found[0] if isinstance(found, tuple) else found).modules():
            model.__dict__.pop(_FRESH, None)
        return found

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Does nothing: a registered class would copy its sources into every saved model, which has a file for that."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Starts the module's own parameters that were not loaded as in a new model. `transformers` calls it for each
        module, and marks what was loaded."""
        for decoder in self.modules():
            if isinstance(decoder, FeedbackDecoder):
                for name, part in decoder.named_modules():
                    if part is module:
                        _copy_missing(module, self._new_decoder(decoder).get_submodule(name))
                        return
        if isinstance(module, nn.Linear | nn.Embedding):
            module.reset_parameters()

    def _new_decoder(self, like: FeedbackDecoder) -> FeedbackDecoder:
        """A decoder as it starts, the same for all modules of one model. It is no submodule."""
        fresh: FeedbackDecoder | None = self.__dict__.get(_FRESH)
        if fresh is None:
            fresh = self.__dict__[_FRESH] = FeedbackDecoder(**like.config.to_dict())
        return fresh


def _with_run(path: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `from_pretrained` with what a RUN holds. Those that are fields of the configuration change it.

    Raises:
        InputError: the RUN cannot be used, or there is a configuration or weights already.
    """
    for name in ("config", "state_dict"):
        if kwargs.get(name) is not None:
            raise InputError(f"{name} is given with a RUN, which has its own; leave it out, or export the RUN first")
    config, weights = config_and_weights(open_text_run(path))
    fields = {name: kwargs[name] for name in kwargs.keys() & config.to_dict().keys() - _OF_LOADING}
    for name, value in fields.items():
        setattr(config, name, value)
    return {**{k: v for k, v in kwargs.items() if k not in fields}, "config": config, "state_dict": weights}


def _copy_missing(module: nn.Module, start: nn.Module) -> None:
    """Copies the module's own parameters that were not loaded from another one."""
    for name, parameter in module.named_parameters(recurse=False):
        if not getattr(parameter, "_is_hf_initialized", False):
            parameter.copy_(start.get_parameter(name))


class FeedbackTransformerModel(FeedbackTransformerPreTrainedModel):
    """The Feedback Transformer without its last projection: tokens in, states out.

    Args:
        config: the hyperparameters.
    """

    def __init__(self, config: FeedbackTransformerConfig) -> None:
        super().__init__(config)
        hyperparameters = config.feedback_config()
        self.token_emb = nn.Embedding(config.vocab_size, hyperparameters.dim)
        self.decoder = FeedbackDecoder(**hyperparameters.to_dict() | {"num_tokens": None})
        self.post_init()
        self.__dict__.pop(_FRESH, None)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether the backward pass recomputes what could have been saved; it can be set."""
        return self.decoder.recompute

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, flag: bool) -> None:
        self.decoder.recompute = flag

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: FeedbackCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Tokens to states.

        A state depends on the tokens before it alone, however a text is split into calls or padded.

        Args:
            input_ids: (B, T) whole numbers in [0, V).
            attention_mask: (B, T) or (B, past + T), 0 at padding, which is as if it were not there. Of the past, the
                cache knows it already.
            past_key_values: what precedes; it is changed in place.
            inputs_embeds: (B, T, D), in place of input_ids.
            use_cache: return the cache; None: as the configuration says in evaluation mode, and not in training.
            kwargs: what `transformers` gives to every model. Positions are distances between real tokens, so
                `position_ids` (B, T) say one thing only: without an attention_mask, a document starts where they do not
                go on by one, as in a packed batch (`DataCollatorWithFlattening`).

        Returns:
            states (B, T, D), which mean nothing at padding, and the cache or None.

        Raises:
            InputError: an input does not fit, attentions or hidden states are asked for, or a cache with a packed
                batch.
        """
        for name in ("output_attentions", "output_hidden_states"):
            asked = kwargs.get(name)
            if getattr(self.config, name) if asked is None else asked:
                raise InputError(f"{name} is True, but the recurrence does not keep them; leave it out")
        x = self._embed(input_ids, inputs_embeds)
        starts = _document_starts(kwargs.get("position_ids"), x) if attention_mask is None else None
        if starts is not None:
            if use_cache or past_key_values is not None:
                raise InputError(
                    "position_ids are of several documents in a row, which no cache can hold; leave out use_cache and "
                    "past_key_values"
                )
            return BaseModelOutputWithPast(last_hidden_state=read_documents(self.decoder, x, starts))
        mask = _padding_mask(attention_mask, x)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if not use_cache and past_key_values is None:
            return BaseModelOutputWithPast(last_hidden_state=read_whole(self.decoder, x, mask))
        cache = FeedbackCache() if past_key_values is None else past_key_values
        if not isinstance(cache, FeedbackCache):
            raise InputError(f"past_key_values is a {type(cache).__name__}; it must be a FeedbackCache")
        states = cache.read(self.decoder, x, mask)
        return BaseModelOutputWithPast(last_hidden_state=states, past_key_values=cache if use_cache else None)

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if input_ids is None or inputs_embeds is not None:
            if input_ids is None and inputs_embeds is not None:
                return inputs_embeds
            given = "neither" if input_ids is None else "both"
            raise InputError(f"of input_ids and inputs_embeds {given} are given; give one of the two")
        check_tokens(input_ids, self.config.num_tokens)  # an adapter around the embedding does not know it
        return self.token_emb(input_ids)


class FeedbackTransformerForCausalLM(FeedbackTransformerPreTrainedModel, GenerationMixin):
    """The Feedback Transformer as a language model.

    Args:
        config: the hyperparameters.
    """

    _tied_weights_keys = {"lm_head.weight": "model.token_emb.weight"}  # noqa: RUF012

    def __init__(self, config: FeedbackTransformerConfig) -> None:
        super().__init__(config)
        self.model = FeedbackTransformerModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()
        self.__dict__.pop(_FRESH, None)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: FeedbackCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Tokens to logits, and to the loss.

        Args:
            input_ids, attention_mask, past_key_values, inputs_embeds, use_cache: as in
                `FeedbackTransformerModel.forward`.
            labels: (B, T), the tokens themselves, or -100 where nothing is to be predicted; the logits at a token are
                compared with the label after it.
            logits_to_keep: how many of the last tokens need logits, or which ones, by index; 0 for all.
            kwargs: those of the loss: `shift_labels` (B, T), in place of labels, is what the logits at each token are
                compared with, and `num_items_in_batch` divides the sum of the loss; and those of every model.

        Returns:
            logits (B, T, V), which mean nothing at padding; the loss, or None without labels; the cache or None.

        Raises:
            InputError: as `FeedbackTransformerModel.forward`.
        """
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=kwargs.get("output_attentions"),
            output_hidden_states=kwargs.get("output_hidden_states"),
            position_ids=kwargs.get("position_ids"),
            return_dict=True,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None or kwargs.get("shift_labels") is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)

    def _prepare_cache_for_generation(  # type: ignore[override]  # it returns nothing there too
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Gives `generate` the cache of this model, unless it has one or needs none.

        Raises:
            InputError: the generation asks for another kind of cache.
        """
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache:
            if generation_config.cache_implementation is not None:
                raise InputError(
                    f"cache_implementation is {generation_config.cache_implementation!r}, but this model has a cache "
                    "of its own, of constant size; leave it out"
                )
            model_kwargs["past_key_values"] = FeedbackCache()
        cache = model_kwargs.get("past_key_values")
        if cache is not None and generation_config.is_assistant:
            cache.activate_past_recording()

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None, **kwargs: Any) -> Tensor | None:
        """The mask of padding (B, past + T), as it is."""
        return attention_mask


def _document_starts(position_ids: Tensor | None, x: Tensor) -> Tensor | None:
    """Where documents of x (B, T, D) start, (B, T) bool; None if each row is one."""
    if position_ids is None:
        return None
    if position_ids.shape not in (x.shape[:2], (1, x.shape[1])):
        raise InputError(f"position_ids is {tuple(position_ids.shape)}; it must be {tuple(x.shape[:2])}")
    starts = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    return starts if bool(starts[:, 1:].any()) else None


def _padding_mask(attention_mask: Tensor | None, x: Tensor) -> Tensor | None:
    """Where x (B, T, D) has real tokens, (B, T) bool; None if all are."""
    if attention_mask is None:
        return None
    batch, length = x.shape[:2]
    if attention_mask.ndim != 2 or attention_mask.shape[0] != batch or attention_mask.shape[1] < length:
        raise InputError(
            f"attention_mask is {tuple(attention_mask.shape)}; it must be ({batch}, {length}), or longer by the tokens "
            "in the cache"
        )
    mask = attention_mask[:, -length:].bool()
    return None if bool(mask.all()) else mask
