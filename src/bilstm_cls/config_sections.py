"""The sections of the config: every key with its meaning, range and default, and what must fit together."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema
from pydantic import field_validator as check
from pydantic_core import PydanticCustomError

METRICS = ("accuracy", "macro_f1", "micro_f1", "weighted_f1", "auroc", "log_loss", "ece")
"""The scores that `train.select_by` may name."""

SOURCES = ("files", "imdb", "rotten_tomatoes", "bbc_news")
"""What `data.source` may name, beside a data set of the Hugging Face Hub."""

HUB_DATASET = r"hf/[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[^:@\s]+)?(@[^:@\s]+)?"

TORCHTEXT_GLOVE = [
    *(f"torchtext/glove.6B.{dim}d" for dim in (50, 100, 200, 300)),
    *(f"torchtext/glove.twitter.27B.{dim}d" for dim in (25, 50, 100, 200)),
    *("torchtext/glove.42B.300d", "torchtext/glove.840B.300d"),
]
"""What `embedding.init` may name of torchtext's GloVe vectors."""

Pooling = Literal["mean", "reduce_mean", "max", "last", "attention"]
Count = Annotated[int, Field(ge=1, le=10**9)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
FileOrFraction = str | Annotated[float, Field(gt=0, lt=1)]
Columns = Annotated[
    list[str],
    Field(min_length=1),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]

Loggers = Annotated[
    list[Literal["tensorboard", "mlflow", "wandb"]],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]


class Section(BaseModel):
    """What all sections share: unknown keys, wrong types and numbers that are not finite are errors."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True, str_min_length=1
    )


class DataConfig(Section):
    """Where the texts and labels come from. A relative path is relative to the working directory."""

    source: str = Field(
        "files",
        description="Your own files, a built-in corpus, or a data set of the Hugging Face Hub: hf/USER/NAME, with "
        ":SUBSET or @REVISION behind it where it has several.",
        json_schema_extra={"anyOf": [{"enum": list(SOURCES)}, {"pattern": "^hf/."}]},
    )
    path: str | None = Field(None, description="With imdb: its archive or folder, when it is already here.")
    train: str | None = Field(None, description="With files: the file or folder of labelled texts to train on.")
    valid: FileOrFraction = Field(
        0.1, description="A file, or the fraction of train that chooses the best epoch; stratified by label."
    )
    test: FileOrFraction | None = Field(
        None, description="A file, or a stratified fraction of train, judged once at the end."
    )
    unlabelled: str | None = Field(
        None, description="A file or folder of texts without labels, to make word vectors from; imdb brings its own."
    )
    format: Literal["auto", "csv", "tsv", "jsonl", "folder", "fasttext", "label-text", "text-label", "parquet"] = Field(
        "auto", description="What the files are; auto goes by the file name, else by the first lines."
    )
    text_columns: Columns = Field(["text"], description="Columns that hold the text; several are joined.")
    label_column: str = Field("label", description="Column that holds the label.")
    label_names: str | None = Field(
        None, description="With labels that are numbers: a file of their names, one a line, the first that of label 0."
    )
    encoding: str = Field("utf-8", description="Any codec that Python knows, or auto.")
    bad_rows: Literal["error", "skip"] = Field("error", description="Stop at a row that cannot be read, or count it.")
    split_seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of the splits, apart from `seed` so that other seeds share one test split."
    )

    @check("source")
    @classmethod
    def _source_is_known(cls, source: str) -> str:
        if source in SOURCES or re.fullmatch(HUB_DATASET, source):
            return source
        raise _choice(f"{', '.join(map(repr, SOURCES))} or 'hf/USER/NAME'")

    @check("path")
    @classmethod
    def _only_imdb_has_a_path(cls, path: str | None, info: ValidationInfo) -> str | None:
        if path is not None and info.data.get("source", "imdb") != "imdb":
            raise ValueError("must be left out; only source 'imdb' has one, and your own files go into data.train")
        return path

    @check("train")
    @classmethod
    def _files_need_train(cls, train: str | None, info: ValidationInfo) -> str | None:
        source = info.data.get("source")
        if source == "files" and train is None:
            raise ValueError("must be the file of labelled texts when source is 'files'")
        if source not in ("files", None) and train is not None:
            raise ValueError(f"must be left out; source {source!r} brings its own texts, source 'files' takes yours")
        return train

    @check("valid", "test")
    @classmethod
    def _built_in_splits_are_fractions(cls, split: str | float | None, info: ValidationInfo) -> str | float | None:
        source = info.data.get("source", "files")
        if source != "files" and isinstance(split, str):
            raise ValueError(f"must be a fraction; source {source!r} brings its own texts, source 'files' takes yours")
        return split

    @check("test")
    @classmethod
    def _something_is_left_to_train_on(cls, test: str | float | None, info: ValidationInfo) -> str | float | None:
        valid = info.data.get("valid")
        if isinstance(test, float) and isinstance(valid, float) and valid + test >= 1:
            raise ValueError(f"must be less than {1 - valid:g}; valid takes {valid:g} of train")
        return test

    @check("unlabelled", "label_names")
    @classmethod
    def _only_files_have_more_files(cls, path: str | None, info: ValidationInfo) -> str | None:
        source = info.data.get("source", "files")
        if path is not None and source != "files":
            raise ValueError(f"must be left out; source {source!r} brings its own texts, source 'files' takes yours")
        return path

    @check("text_columns")
    @classmethod
    def _columns_differ(cls, columns: list[str]) -> list[str]:
        return _all_different(columns)

    @check("encoding")
    @classmethod
    def _python_knows_the_codec(cls, encoding: str) -> str:
        try:
            if encoding != "auto":
                "".encode(encoding)
        except (LookupError, ValueError):
            raise ValueError("must be a text codec that Python knows; 'auto', 'utf-8' or 'gb18030' are some") from None
        return encoding


class TextConfig(Section):
    """How a text becomes tokens, and which tokens the vocabulary keeps."""

    tokenizer: Literal[
        "basic_english", "words", "whitespace", "characters", "cjk", "chinese_words", "bpe",
        "torchtext/basic_english", "torchtext/split", "torchtext/toktok", "torchtext/moses", "torchtext/spacy",
        "torchtext/revtok", "torchtext/subword",
    ] = Field(
        "words",
        description="How texts are split into tokens; characters makes a token of each, cjk of each Chinese, Japanese "
        "or Korean one and keeps other words whole, chinese_words cuts Chinese by a dictionary (needs rjieba), bpe "
        "learns its tokens, and torchtext/... are those of torchtext.",
    )  # fmt: skip
    lowercase: bool = Field(True, description="Whether upper and lower case are the same.")
    normalize: Literal["nfc", "nfkc", "none"] = Field(
        "nfc",
        description="The Unicode form that texts are brought to; nfkc also makes full-width letters plain.",
    )
    strip_html: bool = Field(False, description="Leave out HTML tags, scripts and styles, and replace entities.")
    min_freq: Count = Field(2, description="Times a token must occur in the train split to be in the vocabulary.")
    max_vocab_size: Annotated[int, Field(ge=3, le=10**9)] | None = Field(
        30000, description="Most frequent tokens kept, <pad> and <unk> included; null keeps all."
    )
    max_length: Count = Field(400, description="Tokens of a text that are read; longer texts are cut.")
    truncate: Literal["head", "tail", "both"] = Field("both", description="Which end of a long text is kept.")

    @check("lowercase")
    @classmethod
    def _basic_english_is_lower_case(cls, lowercase: bool, info: ValidationInfo) -> bool:
        tokenizer = info.data.get("tokenizer")
        if not lowercase and tokenizer in ("basic_english", "torchtext/basic_english"):
            raise ValueError(f"must be true with tokenizer {tokenizer!r}; tokenizer 'words' can keep case")
        return lowercase

    @check("max_vocab_size")
    @classmethod
    def _bytes_fit_in(cls, size: int | None, info: ValidationInfo) -> int | None:
        if size is not None and size < 300 and info.data.get("tokenizer") == "bpe":
            raise ValueError("must be at least 300 with tokenizer 'bpe'; it starts from the 256 bytes")
        return size


class EmbeddingConfig(Section):
    """The word vectors that the network starts from."""

    init: str = Field(
        "random",
        description="random, ppmi (factorized co-occurrences of train and unlabelled), glove-6b-50d, the path of a "
        "vectors file, or torchtext/NAME such as torchtext/glove.6B.100d.",
    )
    dim: int = Field(100, ge=1, le=4096, description="Numbers per token.")
    freeze: bool = Field(False, description="Keep the vectors as they start.")

    @check("init")
    @classmethod
    def _name_or_path(cls, init: str) -> str:
        if init.startswith("torchtext/"):
            if init in TORCHTEXT_GLOVE or re.fullmatch(r"torchtext/fasttext\.[a-z_]+\.300d", init):
                return init
            raise _choice(f"{', '.join(map(repr, TORCHTEXT_GLOVE))} or 'torchtext/fasttext.en.300d' of any language")
        if init in ("random", "ppmi", "glove-6b-50d") or re.search(r"[./\\]", init):
            return init
        expected = "'random', 'ppmi', 'glove-6b-50d' or the path of a file (./NAME for one without a suffix)"
        raise _choice(expected)

    @check("dim")
    @classmethod
    def _named_vectors_have_their_width(cls, dim: int, info: ValidationInfo) -> int:
        init = info.data.get("init", "")
        width = re.search(r"(\d+)d$", init) if init == "glove-6b-50d" or init.startswith("torchtext/") else None
        if width and dim != int(width[1]):
            raise ValueError(f"must be {width[1]} with init {init!r}")
        return dim

    @check("freeze")
    @classmethod
    def _random_vectors_must_learn(cls, freeze: bool, info: ValidationInfo) -> bool:
        if freeze and info.data.get("init") == "random":
            raise ValueError("must be false with init 'random'; such vectors mean nothing until they learn")
        return freeze


class ModelConfig(Section):
    """The network: embed, drop, read in both directions, pool, project."""

    cell: Literal["lstm", "gru", "rnn"] = Field("lstm", description="The recurrent unit.")
    bidirectional: bool = Field(True, description="Read from both ends.")
    hidden_size: int = Field(128, ge=1, le=8192, description="Units per direction.")
    num_layers: int = Field(1, ge=1, le=16, description="Recurrent layers on top of each other.")
    init_from: str | None = Field(
        None,
        description="Folder of an encoder that `pretrain` made: its vectors, weights and vocabulary are the first.",
    )
    pooling: Pooling | Literal["concat"] | Annotated[list[Pooling], Field(min_length=1)] = Field(
        "mean",
        description="How the outputs of all tokens become one vector; a list joins several, concat is mean, max, last.",
    )
    bigrams: Annotated[int, Field(ge=2, le=10**9)] | None = Field(
        None,
        description="Rows of a second table, where every pair of neighbouring tokens finds a vector; null for none.",
    )
    dropout: Share = Field(0.5, description="Share of the pooled vector dropped in training.")
    embedding_dropout: Share = Field(0.2, description="Share of embedding dimensions dropped, over the whole text.")
    word_dropout: Share = Field(0.05, description="Share of tokens dropped as a whole.")
    layer_dropout: Share = Field(0.0, description="Share dropped between layers.")
    recurrent_dropout: Share = Field(0.0, description="Share of recurrent weights dropped.")

    ngrams: Literal["nbsvm"] | None = Field(
        None, description="A linear model of n-grams that answers together with the network, weighed on valid."
    )

    @check("init_from")
    @classmethod
    def _init_from_is_a_folder(cls, init_from: str | None) -> str | None:
        if init_from == "corpus":
            raise ValueError(
                "must be the folder of an encoder; did you mean pretrain.enabled: true? (./corpus for such a folder)"
            )
        return init_from

    @check("pooling")
    @classmethod
    def _poolings_differ(cls, pooling: str | list[str]) -> str | list[str]:
        return pooling if isinstance(pooling, str) else _all_different(pooling)

    @check("layer_dropout")
    @classmethod
    def _one_layer_has_no_between(cls, dropout: float, info: ValidationInfo) -> float:
        if dropout > 0 and info.data.get("num_layers") == 1:
            raise ValueError("must be 0 with num_layers 1; there is nothing between layers")
        return dropout


class TrainConfig(Section):
    """How the network learns, when it stops, and on what it runs."""

    epochs: Count = Field(5, description="Passes over the train split.")
    objective: Literal["cross_entropy", "adversarial", "virtual_adversarial", "mixed", "r_drop"] = Field(
        "cross_entropy",
        description="What a step minimises; mixed is adversarial, virtual_adversarial and low entropy together.",
    )
    adversarial_epsilon: Positive = Field(
        0.05, description="Norm of an adversarial perturbation, relative to the norm of a text's embedding."
    )
    unlabelled_batch_size: Count | None = Field(
        None, description="Texts without labels per step, where the objective reads such; null takes batch_size."
    )
    batch_size: Count = Field(64, description="Texts per step.")
    batch_tokens: Count | None = Field(None, description="Padded tokens per step, instead of batch_size.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="The update rule.")
    learning_rate: Positive = Field(1e-3, description="Peak learning rate.")
    layer_lr_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="The encoder's learning rate is the head's times this, the embedding's the encoder's times this.",
    )
    unfreeze: Literal["all", "gradual"] = Field(
        "all", description="gradual: the head learns alone in the first epoch, then the encoder too, then everything."
    )
    momentum: Share = Field(0.9, description="Momentum of sgd.")
    schedule: Literal["one-cycle", "linear", "cosine", "constant"] = Field(
        "one-cycle", description="How the learning rate goes down after warm-up."
    )
    warmup: Share = Field(0.05, description="Share of all steps in which the learning rate rises.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="Decay of weight matrices per unit of rate.")
    max_grad_norm: Positive | None = Field(1.0, description="Gradients are scaled down to this norm; null leaves them.")
    ema_decay: Share | None = Field(
        0.999, description="Decay of the averaged weights that are judged and kept; null for none."
    )
    class_weights: Annotated[dict[str, Positive], Field(min_length=1)] | Literal["balanced"] | None = Field(
        None, description="Weight of each label in the loss: balanced, or a map of every label."
    )
    label_smoothing: Share = Field(0.0, description="Share of the target given to all labels alike.")
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = Field(
        "auto", description="Arithmetic of training; auto is fp32, and on CUDA tf32. Answers are always in fp32."
    )
    device: str = Field(
        "auto",
        description="auto (CUDA, else CPU), cpu, cuda or cuda:N.",
        json_schema_extra={"pattern": r"^(auto|cpu|cuda(:[0-9]{1,3})?)$"},
    )
    processes: Literal["auto"] | Count = Field(
        "auto", description="Processes that share every batch; auto is one for two CPU cores where that is faster."
    )
    threads: Count | None = Field(
        None, description="CPU threads of each process; null divides the cores, or is `OMP_NUM_THREADS`."
    )
    evaluate_every: Literal["epoch"] | Count = Field("epoch", description="After every epoch, or every so many steps.")
    select_by: str = Field(
        "valid/accuracy",
        description="The score on the valid split that chooses the best weights; of equal ones, the log loss does.",
        json_schema_extra={"enum": [f"valid/{name}" for name in METRICS]},
    )
    patience: Count | None = Field(
        2, description="Evaluations without a better score before stopping; null never stops."
    )
    calibrate: bool = Field(True, description="Scale the logits of the chosen weights to be most probable on valid.")
    max_minutes: Positive | None = Field(None, description="Stop after so long.")
    checkpoint_seconds: Annotated[float, Field(ge=0)] = Field(60.0, description="Time between checkpoints.")
    baselines: bool = Field(False, description="Also judge the two linear baselines on the same splits.")
    loggers: Loggers = Field([], description="Where to log as well: tensorboard, mlflow, wandb; each needs its extra.")

    @property
    def reads_unlabelled(self) -> bool:
        """Whether the objective learns from texts without a label."""
        return self.objective in ("virtual_adversarial", "mixed")

    @check("loggers")
    @classmethod
    def _loggers_differ(cls, loggers: list[str]) -> list[str]:
        return _all_different(loggers)

    @check("device")
    @classmethod
    def _device_is_known(cls, device: str) -> str:
        if re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", device):
            return device
        raise _choice("'auto', 'cpu', 'cuda' or 'cuda:N'")

    @check("select_by")
    @classmethod
    def _score_is_known(cls, select_by: str) -> str:
        choices = [f"valid/{name}" for name in METRICS]
        if select_by in choices:
            return select_by
        raise _choice(", ".join(map(repr, choices)))


class PretrainConfig(Section):
    """How `pretrain` makes an encoder, of the sizes above, from texts whose labels it does not read."""

    enabled: bool = Field(
        False,
        description="Whether train first makes an encoder from its own texts, kept in the cache, and starts from it.",
    )
    epochs: Count = Field(5, description="Passes over the texts of train and unlabelled.")
    batch_size: Count = Field(64, description="Texts read side by side; more of them where they are shorter than bptt.")
    bptt: Annotated[int, Field(ge=1, le=10**6)] = Field(
        100, description="Tokens of each text per step; the state goes on from one step of a text to the next."
    )
    learning_rate: Positive = Field(2e-3, description="Peak learning rate of adamw, on a one-cycle schedule.")
    num_samples: Count = Field(512, description="Tokens drawn per step, which the right next token is told from.")
    embedding_dropout: Share = Field(0.2, description="Share of embedding dimensions dropped, over a whole step.")
    dropout: Share = Field(0.2, description="Share of hidden units dropped where they predict, over a whole step.")
    max_grad_norm: Positive | None = Field(1.0, description="Gradients are scaled down to this norm; null leaves them.")


def _all_different(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("must be a list without duplicates")
    return names


def _choice(expected: str) -> PydanticCustomError:
    """Returns the same error as a `Literal` gives, so that it is put in the same words."""
    return PydanticCustomError("literal_error", "must be {expected}", {"expected": expected})
