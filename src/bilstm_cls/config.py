"""The config: every key with its meaning, range and default, and what must fit together."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic import field_validator as check

from bilstm_cls.errors import ConfigError, shown

METRICS = ("accuracy", "macro_f1", "micro_f1", "weighted_f1", "auroc", "log_loss", "ece")
MULTI_METRICS = ("samples_f1", "hamming_loss", "lrap", "average_precision")
SELECT_BY: list[Any] = [f"valid/{name}" for name in (*METRICS, *MULTI_METRICS)]
"""What `train.select_by` may name; `MULTI_METRICS` are of texts with several labels alone."""

SOURCES = ("files", "imdb", "rotten_tomatoes", "bbc_news")
HUB_DATASET = r"hf/[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[^:@\s]+)?(@[^:@\s]+)?"
"""What `data.source` may name."""

MADE = ("random", "ppmi")
VECTORS = r"(?s)random|ppmi|en-300|glove-6b-50d|torchtext/(glove|fasttext)\..+\.\d+d|(?!torchtext/).*[./\\].*"

Pooling = Literal["mean", "reduce_mean", "max", "last", "attention"]
Count = Annotated[int, Field(ge=1, le=10**9)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
FileOrFraction = str | Annotated[float, Field(gt=0, lt=1)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Columns = Annotated[list[str], Field(min_length=1), BeforeValidator(_as_list, json_schema_input_type=str | list[str])]
Files = str | Annotated[list[str], Field(min_length=1)]
Device = Annotated[str, Field(pattern="^(auto|cpu|cuda(:[0-9]{1,3})?)$")]
Character = Annotated[str, Field(pattern=r"^([^\w\s]|none)$")]
Loggers = Annotated[list[Literal["tensorboard", "mlflow", "wandb"]], BeforeValidator(_as_list)]


class Section(BaseModel):
    """What all sections share: unknown keys, wrong types and numbers that are not finite are errors."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True, str_min_length=1
    )

    @check("*")
    @classmethod
    def _fits(cls, value: Any, info: ValidationInfo) -> Any:
        if problem := cls.problem(str(info.field_name), value, info.data):
            if not isinstance(value, Section):
                raise ValueError(problem)
            key, _, words = problem.partition(": ")
            error: Any = {"type": "value_error", "loc": (key,), "input": getattr(value, key)}
            raise ValidationError.from_exception_data("", [error | {"ctx": {"error": ValueError(words)}}])
        if isinstance(value, list) and len(set(value)) < len(value):
            raise ValueError("must be a list without duplicates")
        return value

    @classmethod
    def problem(cls, key: str, value: Any, given: Mapping[str, Any]) -> str | None:
        """Returns what a value "must be", of a section after the name of its wrong key; `given` are the keys before."""
        return None


class CsvConfig(Section):
    """How csv and tsv files are written; null is found from the first lines, none is no such character."""

    delimiter: str | None = Field(None, max_length=5, description="What parts the fields.")
    quotechar: Character | None = Field(None, description="What is around a field that holds a delimiter.")
    escapechar: Character | None = Field(None, description="What makes the next character one like others.")
    skip_lines: int | None = Field(None, ge=0, le=10**6, description="Lines before the header or the first row.")
    comment: str | None = Field(None, max_length=5, description="What a line that is no row begins with.")


class DataConfig(Section):
    """Where the texts and labels come from. A relative path is relative to the working directory."""

    source: str = Field(
        "files",
        description="Your files, a built-in corpus, or hf/USER/NAME[:SUBSET][@REVISION] of the Hugging Face Hub.",
        json_schema_extra={"anyOf": [{"enum": list(SOURCES)}, {"pattern": "^hf/."}]},
    )
    path: str | None = Field(None, description="With imdb: its archive or folder, if it was downloaded before.")
    train: Files | None = Field(None, description="With files: a file, folder, pattern (part-*.csv) or list of them.")
    valid: FileOrFraction | None = Field(0.1, description="A file, or a fraction of train; chooses the best epoch.")
    test: FileOrFraction | None = Field(None, description="A file, or a stratified fraction of train; evaluated once.")
    valid_split: Literal["random", "blocks"] = Field("random", description="blocks keeps neighbouring texts together.")
    group_column: str | None = Field(None, description="Column of what texts share that must be in one split.")
    unlabelled: str | None = Field(None, description="A file or folder of texts without labels; imdb brings its own.")
    format: Literal[
        "auto", "csv", "tsv", "jsonl", "folder", "fasttext", "label-text", "text-label", "parquet", "arrow"
    ] = Field("auto", description="What the files are; auto goes by the file name, else by the first lines.")
    csv: CsvConfig = Field(default_factory=CsvConfig, description="The dialect of csv and tsv files.")
    text_columns: Columns = Field(["text"], description="Columns that hold the text; several are joined.")
    labels: Literal["single", "multi"] = Field("single", description="One label a text, or any number, even none.")
    label_column: str | Annotated[list[str], Field(min_length=2)] = Field(
        "label", description="Column of the label or labels; with labels multi also a list of columns of 1 and 0."
    )
    label_separator: str = Field("|", description="With labels multi, what is between the labels in a column of text.")
    label_names: str | None = Field(None, description="File with names of labels that are numbers, one a line from 0.")
    encoding: str = Field("utf-8", description="Any codec that Python knows, or auto.")
    bad_rows: Literal["error", "skip"] = Field("error", description="Stop at a row that cannot be read, or count it.")
    split_seed: int = Field(0, ge=0, lt=2**63, description="Seed of the splits, so that all seeds share one test.")

    @classmethod
    def problem(cls, key: str, value: Any, given: Mapping[str, Any]) -> str | None:
        source = given.get("source", value if key == "source" else None)
        has_texts = source is not None and source != "files"  # an invalid source is a problem by itself
        match key:
            case "source" if source not in SOURCES and not re.fullmatch(HUB_DATASET, value):
                return f"must be {', '.join(map(repr, SOURCES))} or 'hf/USER/NAME'"
            case "train" if source == "files" and value is None:
                return "must be the file of labelled texts when source is 'files'"
            case "train" | "unlabelled" | "label_names" if has_texts and value is not None:
                return f"must be left out; source {source!r} brings its texts, source 'files' takes yours"
            case "valid" | "test" if has_texts and isinstance(value, str):
                return f"must be a fraction; source {source!r} brings its texts, source 'files' takes yours"
            case "test" if isinstance(value, float):
                valid = given.get("valid")
                if isinstance(valid, float) and valid + value >= 1:
                    return f"must be less than {1 - valid:g}; valid takes {valid:g} of train"
            case "label_column" if isinstance(value, list) and given.get("labels") == "single":
                return "must be one column with labels 'single'"
            case "group_column" if value is not None and given.get("valid_split") == "blocks":
                return "must be left out with valid_split 'blocks'; groups are kept together at random"
            case "encoding" if value != "auto":
                try:
                    "".encode(value)
                except (LookupError, ValueError):
                    return "must be a text codec that Python knows; 'auto', 'utf-8' or 'gb18030' are some"
        return None


class TextConfig(Section):
    """How a text becomes tokens, and which tokens the vocabulary keeps."""

    tokenizer: Literal[
        "basic_english", "words", "whitespace", "characters", "cjk", "bpe",
        "torchtext/basic_english", "torchtext/split", "torchtext/toktok", "torchtext/moses", "torchtext/spacy",
    ] = Field(
        "words",
        description="How texts are split; cjk makes a token of each Chinese, Japanese or Korean character, bpe learns.",
    )  # fmt: skip
    lowercase: bool = Field(True, description="Whether upper and lower case are the same.")
    normalize: Literal["nfc", "nfkc", "none"] = Field("nfc", description="Unicode form; nfkc narrows wide letters.")
    strip_html: bool = Field(False, description="Leave out HTML tags, scripts and styles, and replace entities.")
    min_freq: Count = Field(2, description="Times a token must occur in the train split to be in the vocabulary.")
    max_vocab_size: Annotated[int, Field(ge=3, le=10**9)] | None = Field(
        30000, description="Most frequent tokens kept, with <pad> and <unk>; en-300 fills what is left. null keeps all."
    )
    max_length: Count = Field(400, description="Tokens of a text that are read; longer texts are cut.")
    truncate: Literal["head", "tail", "both"] = Field("both", description="Which end of a long text is kept.")

    @classmethod
    def problem(cls, key: str, value: Any, given: Mapping[str, Any]) -> str | None:
        tokenizer = given.get("tokenizer", "")
        if key == "lowercase" and not value and tokenizer.endswith("basic_english"):
            return f"must be true with tokenizer {tokenizer!r}; tokenizer 'words' can keep case"
        if key == "max_vocab_size" and value is not None and value < 300 and tokenizer == "bpe":
            return "must be at least 300 with tokenizer 'bpe'; it starts from the 256 bytes"
        return None


class EmbeddingConfig(Section):
    """The word vectors that the network starts from."""

    init: Files = Field(
        "random",
        description="random, ppmi (factorized co-occurrences of train and unlabelled), en-300, glove-6b-50d, the path "
        "of a vectors file, torchtext/NAME such as torchtext/glove.6B.100d, or model2vec/MODEL; a list joins several.",
    )
    dim: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None, description="Numbers per token; null for what the vectors have, and 100 of random or ppmi ones."
    )
    freeze: bool = Field(False, description="Keep the vectors as they start.")

    @property
    def sources(self) -> list[str]:
        return [self.init] if isinstance(self.init, str) else self.init

    @property
    def width(self) -> int:
        """Numbers per token; null of vectors whose names do not tell it has to be replaced before."""
        return self.dim if self.dim is not None else sum(own_width(name) or 0 for name in self.sources)

    @classmethod
    def problem(cls, key: str, value: Any, given: Mapping[str, Any]) -> str | None:
        if key == "init" and not all(re.fullmatch(VECTORS, name) for name in _as_list(value)):
            known = "'random', 'ppmi', 'en-300', 'glove-6b-50d', 'torchtext/glove.6B.100d' or another of torchtext"
            return f"must be {known}, or the path of a file (./NAME for one without a suffix)"
        return None


class ModelConfig(Section):
    """The network: embed, drop, read in both directions, pool, project."""

    cell: Literal["lstm", "gru", "rnn"] = Field("lstm", description="The recurrent unit.")
    bidirectional: bool = Field(True, description="Read from both ends.")
    hidden_size: int = Field(128, ge=1, le=8192, description="Units per direction.")
    num_layers: int = Field(1, ge=1, le=16, description="Recurrent layers on top of each other.")
    init_from: str | None = Field(None, description="Encoder, run, or config that is trained first, to start from.")
    pooling: Pooling | Literal["concat"] | Annotated[list[Pooling], Field(min_length=1)] = Field(
        "mean", description="How all outputs become one vector; a list joins several, concat is mean, max, last."
    )
    bigrams: Annotated[int, Field(ge=2, le=10**9)] | None = Field(
        None, description="Rows of a second table, of vectors of pairs of neighbouring tokens; null for none."
    )
    dropout: Fraction = Field(0.5, description="Probability of dropping a number of the pooled vector in training.")
    embedding_dropout: Fraction = Field(0.2, description="Probability of dropping an embedding dimension, per text.")
    word_dropout: Fraction = Field(0.05, description="Probability of dropping a token as a whole.")
    layer_dropout: Fraction = Field(0.0, description="Probability of dropping a number between layers.")
    recurrent_dropout: Fraction = Field(0.0, description="Probability of dropping a recurrent weight.")
    ngrams: Literal["nbsvm"] | None = Field(None, description="A linear model of n-grams, added to the network.")

    @classmethod
    def problem(cls, key: str, value: Any, given: Mapping[str, Any]) -> str | None:
        if key == "layer_dropout" and value > 0 and given.get("num_layers") == 1:
            return "must be 0 with num_layers 1; there is nothing between layers"
        return None


class TrainConfig(Section):
    """How the network learns, when it stops, and on what it runs."""

    epochs: Count = Field(5, description="Passes over the train split.")
    objective: Literal["cross_entropy", "per_direction", "adversarial", "virtual_adversarial", "r_drop"] = Field(
        "cross_entropy", description="What a step minimises; per_direction also asks each direction by itself."
    )
    teacher: Columns | None = Field(
        None, description="What labels unlabelled texts: ngrams, network, folders of runs; auto is the first two."
    )
    adversarial_epsilon: Positive = Field(0.05, description="Norm of a perturbation, relative to the embedding's.")
    unlabelled_batch_size: Count | None = Field(None, description="Texts without labels per step; null: batch_size.")
    batch_size: Count = Field(64, description="Texts per step.")
    batch_tokens: Count | None = Field(None, description="Padded tokens per step, instead of batch_size.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="The update rule.")
    learning_rate: Positive = Field(4e-3, description="Peak learning rate.")
    layer_lr_decay: float = Field(1.0, gt=0, le=1, description="Learning rate of each layer relative to the next one.")
    unfreeze: Literal["all", "gradual"] = Field("all", description="gradual: one more layer an epoch, the head first.")
    momentum: Fraction = Field(0.9, description="Momentum of sgd.")
    schedule: Literal["one-cycle", "linear", "cosine", "constant"] = Field(
        "one-cycle", description="How the learning rate goes down after warm-up."
    )
    warmup: Fraction = Field(0.05, description="Fraction of all steps in which the learning rate rises.")
    weight_decay: float = Field(0.0, ge=0, description="Decay of weight matrices per unit of rate.")
    max_grad_norm: Positive | None = Field(1.0, description="Gradients are scaled down to this norm; null leaves them.")
    ema_decay: Fraction | None = Field(0.999, description="Decay of the averaged weights that are kept; null for none.")
    class_weights: Annotated[dict[str, Positive], Field(min_length=1)] | Literal["balanced"] | None = Field(
        None, description="Weight of each label in the loss: balanced, or a map of every label."
    )
    label_smoothing: Fraction = Field(0.0, description="Probability that the target spreads over all labels.")
    precision: Literal["auto", "fp32", "tf32", "bf16"] = Field(
        "auto",
        description="Arithmetic of training; auto is tf32 on CUDA, bf16 on a CPU that multiplies it for an LSTM of "
        "128 units or more, else fp32. Predictions are in fp32 unless they are asked for in bf16.",
    )
    device: Device = Field("auto", description="auto (CUDA, else CPU), cpu, cuda or cuda:N.")
    processes: Literal["auto"] | Count = Field("auto", description="That share every batch; auto: one for two cores.")
    threads: Count | None = Field(None, description="CPU threads of each process; null: OMP_NUM_THREADS, or the cores.")
    evaluate_every: Literal["epoch"] | Count = Field("epoch", description="After every epoch, or every so many steps.")
    select_by: str = Field(
        "valid/accuracy",
        description="The score on the valid split that chooses the best weights; of equal ones, the log loss does.",
        json_schema_extra={"enum": SELECT_BY},
    )
    patience: Count | None = Field(2, description="Evaluations without a better score before stopping; null: never.")
    calibrate: bool = Field(True, description="Scale the logits of the chosen weights to be most probable on valid.")
    reject: Fraction | None = Field(None, description="Precision wanted; answers too uncertain for it are null.")
    max_minutes: Positive | None = Field(None, description="Stop after so long.")
    checkpoint_seconds: float = Field(60.0, ge=0, description="Time between checkpoints.")
    baselines: bool = Field(False, description="Also evaluate linear models on the same splits.")
    loggers: Loggers = Field([], description="Where to log as well: tensorboard, mlflow, wandb; each needs its extra.")

    @classmethod
    def problem(cls, key: str, value: Any, given: Mapping[str, Any]) -> str | None:
        if key == "teacher" and not all(re.fullmatch(r"auto|ngrams|network|.*[./\\].*", name) for name in value or []):
            return "must be 'auto', or a list of 'ngrams', 'network' and folders of runs, such as ./NAME"
        if key == "select_by" and value not in SELECT_BY:
            return f"must be {', '.join(map(repr, SELECT_BY))}"
        return None


class PretrainConfig(Section):
    """How `pretrain` makes an encoder, of the sizes above, from texts whose labels it does not read."""

    enabled: bool = Field(False, description="Whether train first makes an encoder from its texts, kept in the cache.")
    epochs: Count | None = Field(
        None, description="Passes over train and unlabelled; null: two to eight, which read about 18 million tokens."
    )
    batch_size: Count = Field(64, description="Texts read in parallel; more of them where they are shorter than bptt.")
    bptt: int = Field(100, ge=1, le=10**6, description="Tokens of each text per step, in which gradients flow.")
    learning_rate: Positive = Field(8e-3, description="Peak learning rate of adamw, on a one-cycle schedule.")
    num_samples: Count = Field(512, description="Tokens drawn per step, which the right next token is compared with.")
    embedding_dropout: Fraction = Field(0.2, description="Probability of dropping an embedding dimension, per step.")
    dropout: Fraction = Field(0.2, description="Probability of dropping a hidden unit of the output, per step.")
    max_grad_norm: Positive | None = Field(1.0, description="Gradients are scaled down to this norm; null leaves them.")


class Config(Section):
    """Everything that decides a run."""

    name: str = Field("run", max_length=80, description="Name of the run directory; left out, the config file's name.")
    seed: int = Field(1, ge=0, lt=2**63, description="Seed of weights, batches and dropout.")
    output_dir: str = Field("runs", description="Folder in which run directories are made.")
    # Unchecked, so that there are defaults without data; of a file the section is always checked.
    data: DataConfig = Field(default_factory=DataConfig.model_construct, description="The texts and labels.")
    text: TextConfig = Field(default_factory=TextConfig, description="Tokens and vocabulary.")
    embedding: EmbeddingConfig = Field(default_factory=EmbeddingConfig, description="Word vectors.")
    model: ModelConfig = Field(default_factory=ModelConfig, description="The network.")
    train: TrainConfig = Field(default_factory=TrainConfig, description="Training.")
    pretrain: PretrainConfig = Field(default_factory=PretrainConfig, description="Language models, before training.")

    @property
    def reads_unlabelled(self) -> bool:
        """Whether texts without a label are of use: for word vectors, an encoder, or to the network as it learns."""
        is_learnt = self.train.objective == "virtual_adversarial" or self.train.teacher is not None
        return "ppmi" in self.embedding.sources or self.pretrain.enabled or is_learnt

    @classmethod
    def problem(cls, key: str, value: Any, given: Mapping[str, Any]) -> str | None:
        if key == "name" and not re.fullmatch(r"[\w-][\w.-]*", value):
            return "must be a plain folder name; it may hold letters, digits, '.', '_' and '-', and not start with '.'"
        name = {"model": "ngrams", "train": "reject"}.get(key)
        if name and getattr(value, name) is not None and getattr(given.get("data"), "valid", 0) is None:
            return f"{name}: must be null with data.valid null; it is fitted to texts that train lacks"
        if key == "train" and value.reject is not None and getattr(given.get("data"), "labels", None) == "multi":
            return "reject: must be null with data.labels 'multi', whose labels have thresholds of their own"
        folder = getattr(given.get("model"), "init_from", None)
        if key == "pretrain" and value.enabled and folder is not None:
            return f"enabled: must be false with model.init_from {shown(folder)}; a run starts from one encoder"
        return None

    def replace(self, **changes: Any) -> "Config":
        """Returns a copy with other values by key, as in `config.replace(**{"train.epochs": 3})`.

        `ConfigError` names all that are wrong.
        """
        values: dict[str, Any] = dict(self)
        for key, value in changes.items():
            *sections, name = key.split(".")
            node = values
            for section in sections:
                node[section] = dict(node.get(section, {}))
                node = node[section]
            node[name] = value
        try:
            return Config.model_validate(values)
        except ValidationError as error:
            wrong = [(".".join(map(str, e["loc"][:2])), e["msg"], e["input"]) for e in error.errors(include_url=False)]
            lines = [f"{key}: {problem}, not {shown(value)}" for key, problem, value in wrong]
            raise ConfigError("\n".join(lines).replace("Value error, ", "")) from None


def config_keys() -> dict[str, list[str]]:
    """Returns the names of all keys by section in their order, those of the top level under the empty name."""
    sections = {n: f.annotation for n, f in Config.model_fields.items() if isinstance(f.annotation, type)}
    keys = {n: list(kind.model_fields) for n, kind in sections.items() if issubclass(kind, Section)}
    return {"": list(Config.model_fields), **keys, "data.csv": list(CsvConfig.model_fields)}


def own_width(vectors: str) -> int | None:
    """Returns how many numbers a token has in vectors whose name tells it."""
    named = re.fullmatch(r"(?:torchtext/.+\.|en-|glove-6b-)(\d+)d?", vectors)
    return int(named[1]) if named else 100 if vectors in MADE else None
