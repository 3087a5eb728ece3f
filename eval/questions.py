"""A trait's questions as the sampling commands ask them: under a system prompt, with the prompts that judge them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from persona_vectors.responses import PromptRow

DEFAULT_JUDGE = "gpt-4.1-mini-2025-04-14"


@dataclass(frozen=True)
class Question:
    """One question of a trait under one system prompt, with the judge prompts that score its answers."""

    id: str
    paraphrases: tuple[str, ...]
    judge_prompts: dict[str, str]
    temperature: float = 1.0
    system: str | None = None
    judge: str = DEFAULT_JUDGE
    judge_eval_type: str = "0_100"
    stream: tuple[int, int] = (0, 0)  # (question, instruction) numbers; see PromptRow.stream

    def rows(self, n_per_question: int) -> list[PromptRow]:
        """The rows to be sampled: `n_per_question` samples, going round the paraphrases."""
        from persona_vectors.responses import PromptRow

        return [
            PromptRow(
                question=self.paraphrases[sample % len(self.paraphrases)],
                question_index=self.stream[0],
                question_id=self.id,
                system=self.system,
                stream=(*self.stream, sample),
            )
            for sample in range(n_per_question)
        ]

    def get_input(self, n_per_question: int) -> tuple[list[str], list[list[dict[str, str]]]]:
        """The questions and their conversations, as the published method returns them."""
        rows = self.rows(n_per_question)
        return [row.question for row in rows], [row.messages() for row in rows]


def load_persona_questions(
    trait: str,
    temperature: float = 1.0,
    persona_instruction_type: str | None = None,
    assistant_name: str | None = None,
    judge_model: str = DEFAULT_JUDGE,
    version: str = "extract",
    model: str | None = None,
) -> list[Question]:
    """The trait's questions, each under every instruction of the pole asked for, with trait and coherence judges.

    `neutral` is the system prompt "You are a helpful assistant.", asked as often as pos and neg with their several
    instructions, so that it can be paired with them; its ids are those without an instruction, `<trait>_<i>`.
    `model` is the chat model, whose folder may ship the trait in its own language.
    """
    from judge import COHERENCE_PROMPT
    from persona_vectors.responses import prompt_rows
    from persona_vectors.traits import load_coherence_prompt, load_trait, system_prompt

    definition = load_trait(trait, version, model=model, judge_model=judge_model)
    coherence = load_coherence_prompt(judge_model) or COHERENCE_PROMPT
    neutral = persona_instruction_type == "neutral"
    pole = "pos" if neutral else persona_instruction_type
    rows = prompt_rows(definition, pole=pole, assistant_name=assistant_name)
    if neutral:
        system = system_prompt(assistant_name or "helpful", "").strip()
        rows = [replace(row, question_id=f"{definition.name}_{row.question_index}", system=system) for row in rows]
    return [
        Question(
            id=row.question_id,
            paraphrases=(row.question,),
            judge_prompts={definition.name: definition.eval_prompt, "coherence": coherence},
            temperature=temperature,
            system=row.system,
            judge=judge_model,
            stream=row.stream[:2],
        )
        for row in rows
    ]
