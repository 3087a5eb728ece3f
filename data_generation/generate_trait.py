"""Write the two files of a new trait with any OpenAI-compatible model: instructions, questions, judge prompt.

python -m data_generation.generate_trait --trait curious --description "wants to know more and asks about it" \
    --model gpt-4.1-mini

For a model that is served elsewhere, OPENAI_BASE_URL says where.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from persona_vectors import cli

if TYPE_CHECKING:
    from data_generation.trait_artifacts import Draft
    from persona_vectors.store import Store

T = TypeVar("T")

TRIES = 3  # replies that cannot be read, before the model is given up
ROUNDS = 5  # requests for what is missing, before and again after the review


def main(
    trait: str,
    description: str,
    model: str,
    output_dir: str = "data_generation",
    n_pairs: int = 5,
    n_questions: int = 40,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Ask a model for a trait's material, have it reviewed, and write trait_data_extract/ and trait_data_eval/ files.

    What is invalid, doubled or nearly doubled is asked for again; a second call reviews every item, and what it
    rejects is replaced once. Finished replies are kept in the store (PERSONA_STORE): the same command again goes on
    where it was interrupted. trait_provenance/ says how the files were made and what was rejected.

    Args:
        trait: name of the trait: lower-case letters, digits and _, as the files and columns have it.
        description: what is meant by it, in a sentence or two.
        model: a model of OpenAI (OPENAI_API_KEY) or of the server at OPENAI_BASE_URL.
        output_dir: folder that gets trait_data_extract/<trait>.json and trait_data_eval/<trait>.json.
        n_pairs: pairs of instructions, pos and neg.
        n_questions: questions, half of them for each file.
        seed: of the split of the questions.
        overwrite: ask anew, and replace the files.
    """
    from persona_vectors.store import Store

    _check(trait, description, model, n_pairs, n_questions)
    paths = _paths(output_dir, trait)
    settings = {"trait": trait, "description": description, "model": model, "seed": seed}
    settings |= {"n_pairs": n_pairs, "n_questions": n_questions}
    if not overwrite:
        _refuse_existing(paths, settings)
    with Store() as store:
        asker = Asker(model, trait, store, overwrite)
        draft = make(asker, trait, description, n_pairs, n_questions)
    _write(paths, draft, settings, asker)


def _check(trait: str, description: str, model: str, n_pairs: int, n_questions: int) -> None:
    """Refuses what can be known to fail before anything is asked."""
    from persona_vectors.traits import RESERVED_NAMES, canonical_name

    name = canonical_name(trait)
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", trait):
        plain = re.sub(r"[^a-z0-9_]+", "_", name).strip("_0123456789")
        hint = f", such as {plain}" if plain else ""
        raise ValueError(
            f"trait name {trait!r} cannot be a file's: use at most 64 lower-case letters, digits and _{hint}"
        )
    if name != trait:
        raise ValueError(f"{trait!r} is another spelling of the trait {name!r}; choose another name")
    if name in RESERVED_NAMES:
        raise ValueError(f"a trait cannot be named {name!r}: tables have a column of that name")
    if not description.strip():
        raise ValueError("--description is empty; say in a sentence what is meant by the trait")
    if n_pairs < 1 or n_questions < 2 or n_questions % 2:
        raise ValueError(
            f"--n_pairs must be at least 1 and --n_questions an even number; got {n_pairs} and {n_questions}"
        )
    check_model(model)


def check_model(model: str) -> None:
    """ValueError for a folder, and where neither a key nor a server is named."""
    from persona_vectors.chat_api import environment

    if Path(model).is_dir():
        raise ValueError(
            f"--model {model} is a folder; serve it with an OpenAI-compatible server and set OPENAI_BASE_URL"
        )
    if not (environment("OPENAI_API_KEY") or environment("OPENAI_BASE_URL")):
        raise ValueError(
            f"model {model} needs OPENAI_API_KEY (in the environment or .env), or the OPENAI_BASE_URL of a server"
        )


def _paths(output_dir: str, trait: str) -> dict[str, Path]:
    from persona_vectors.files import check_output_path

    folders = {"extract": "trait_data_extract", "eval": "trait_data_eval", "provenance": "trait_provenance"}
    return {name: check_output_path(Path(output_dir) / folder / f"{trait}.json") for name, folder in folders.items()}


def _refuse_existing(paths: dict[str, Path], settings: dict[str, Any]) -> None:
    """An existing trait is not replaced; only a run of the same settings that was stopped while writing may go on."""
    existing = [name for name in ("extract", "eval") if paths[name].exists()]
    if not existing:
        return
    try:
        record = json.loads(paths["provenance"].read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        record = None
    if len(existing) == 2 or not isinstance(record, dict) or record.get("settings") != settings:
        raise ValueError(f"{paths[existing[0]]} exists; pass --overwrite, or another --trait or --output_dir")


@dataclass
class Asker:
    """Asks the model, one prompt at a time; a reply that could be read is kept in the store and not asked again."""

    model: str
    trait: str
    store: Store
    overwrite: bool
    n_asked: int = 0

    def ask(self, prompt: str, read: Callable[[str], T], turn: str) -> T:
        """What `read` makes of the reply; `turn` tells equal prompts apart.

        Raises ValueError with the reply's beginning after TRIES replies that could not be read.
        """
        from data_generation.trait_artifacts import Unreadable
        from persona_vectors.chat_api import environment
        from persona_vectors.store import content_key

        key = content_key(
            "trait_reply", model=self.model, base_url=environment("OPENAI_BASE_URL"), prompt=prompt, turn=turn
        )
        known = {} if self.overwrite else self.store.get_many([key])
        if key in known:
            return read(known[key])
        reply, error = "", Unreadable("")
        for _ in range(TRIES):
            reply = self._reply(prompt)
            try:
                value = read(reply)
            except Unreadable as unreadable:
                error = unreadable
                continue
            self.store.put_many({key: reply}, kind="trait_reply", source=f"{self.model} {self.trait}")
            return value
        got = " ".join(reply.split())[:200]
        raise ValueError(
            f"{TRIES} replies of {self.model} could not be used ({error}); it must be able to write JSON; the last "
            f"began: {got!r}"
        )

    def _reply(self, prompt: str) -> str:
        """One reply of the model; Unfinished where it could not be had."""
        from persona_vectors.chat_api import ask_all, complete, text_of

        replies: list[str] = []
        failed = ask_all(
            lambda client, text: complete(
                client, text_of, model=self.model, messages=[{"role": "user", "content": text}]
            ),
            [prompt],
            lambda _, reply: replies.append(reply),
            max_concurrent=1,
        )
        self.n_asked += 1
        if failed:
            raise cli.Unfinished(
                f"{self.model} did not answer: {failed[prompt]}; what is finished is kept: run the same command again"
            )
        return replies[0]


def make(asker: Asker, trait: str, description: str, n_pairs: int, n_questions: int) -> Draft:
    """The complete material: asked for, filled up, reviewed, and what the review rejected replaced once."""
    from data_generation.prompts import review_prompt, trait_file_prompt
    from data_generation.trait_artifacts import PARTS, Draft, read_parts, read_review

    task = trait_file_prompt(trait.replace("_", " "), description, n_pairs, n_questions)
    draft = Draft(trait, n_pairs, n_questions)
    draft.add(asker.ask(task, lambda reply: read_parts(reply, PARTS), turn="first"))
    _fill(asker, draft, task, "before the review")
    items = draft.numbered()
    prompt = review_prompt(trait.replace("_", " "), description, items)
    draft.drop(asker.ask(prompt, lambda reply: read_review(reply, list(items)), turn="review"))
    _fill(asker, draft, task, "after the review")
    return draft


def _fill(asker: Asker, draft: Draft, task: str, stage: str) -> None:
    """Ask for what is missing until nothing is; ValueError after ROUNDS requests."""
    from data_generation.prompts import more_prompt
    from data_generation.trait_artifacts import read_parts

    for turn in range(ROUNDS):
        if not (missing := draft.missing()):
            return
        rejected = [(old.item, old.reason) for old in draft.rejected]
        present = {name: item for name, item in draft.numbered().items() if item is not None}
        prompt = more_prompt(task, missing, present, rejected)
        parts = list(missing)
        draft.add(asker.ask(prompt, lambda reply, parts=parts: read_parts(reply, parts), turn=f"{stage} {turn}"))
    if missing := draft.missing():
        lacking = ", ".join(f"{n} of {part}" for part, n in missing.items())
        raise ValueError(
            f"{asker.model} gave no usable {lacking} in {ROUNDS} requests {stage}; the last was rejected because: "
            f"{draft.rejected[-1].reason if draft.rejected else 'its lists were empty'}; try another model"
        )


def _write(paths: dict[str, Path], draft: Draft, settings: dict[str, Any], asker: Asker) -> None:
    """The two files and how they were made, each whole or absent; then they are read as every command reads them."""
    from data_generation import prompts
    from persona_vectors.files import provenance, write_json_atomic
    from persona_vectors.traits import TraitFile, load_trait

    contents = draft.files(settings["seed"])
    for content in contents.values():
        TraitFile.model_validate(content)
    templates = prompts.TRAIT_FILE_TEMPLATE + prompts.MORE_TEMPLATE + prompts.REVIEW_TEMPLATE
    record = {
        "settings": settings,
        "prompts_sha256": hashlib.sha256(templates.encode()).hexdigest(),
        "n_asked": asker.n_asked,
        "rejected": [asdict(item) for item in draft.rejected],
        **provenance(),
    }
    write_json_atomic(paths["provenance"], record)
    for version, content in contents.items():
        write_json_atomic(paths[version], content)
        loaded = load_trait(paths[version], version)
        print(f"{paths[version]}: {len(loaded.instruction)} pairs, {len(loaded.questions)} questions")
    print(f"{paths['provenance']}: {len(draft.rejected)} items rejected, {asker.n_asked} replies asked for")


if __name__ == "__main__":
    cli.run(main)
