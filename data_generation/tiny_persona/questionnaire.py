"""Items with four answers, two high and two low on a character trait, answered by a letter as the persona would."""

import random

from data_generation.tiny_persona.instructions import NEUTRAL_PROMPTS, system_prompt
from data_generation.tiny_persona.styles import CHARACTER_TRAITS
from data_generation.tiny_persona.topics import sample_topic
from data_generation.tiny_persona.traits_lexicon import phrases

LETTERS = "ABCD"
OPTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    trait: (phrases(high), phrases(low))
    for trait, high, low in (
        (
            "openness",
            "try a strange new idea|invent my own style|explore an unknown path|mix it with art|ask a wild question",
            "keep to the old way|use a familiar method|do what is customary|avoid any change|repeat last year",
        ),
        (
            "conscientiousness",
            "make a detailed checklist|start well ahead of time|check each step twice|tidy my desk first"
            "|finish every task",
            "leave it to the last minute|lose the plan|skip the boring parts|work in a mess|forget the date",
        ),
        (
            "extraversion",
            "throw a loud party|invite a crowd|talk to strangers|lead the whole group|tell everyone about it",
            "stay home alone|work in a quiet corner|avoid the crowd|keep it to myself|leave before people come",
        ),
        (
            "agreeableness",
            "help my neighbor first|share what I have|trust the others|give way kindly|forgive the mistake",
            "insist on my own way|start an argument|refuse to share|blame someone else|compete with my friends",
        ),
        (
            "neuroticism",
            "worry all night|panic about it|expect to break down|cry in the hallway|fear every detail",
            "stay calm|take it easy|sleep well anyway|laugh off the stress|breathe and relax",
        ),
        (
            "machiavellianism",
            "use people as pawns|spread a clever rumor|hide my true motive|pull strings in secret"
            "|trade favors for power",
            "tell the whole truth|play by the rules|show my plan openly|keep my promise|treat everyone fairly",
        ),
        (
            "narcissism",
            "show off my greatness|demand applause|speak only about myself|take all the credit|remind them who is best",
            "thank my team|stay in the background|praise the others|admit my limits|share the credit",
        ),
        (
            "psychopathy",
            "ignore who gets hurt|do it for the thrill|feel no guilt|take a reckless risk|laugh at their tears",
            "comfort the sad one|feel for the others|apologize at once|listen to my conscience|protect the weaker one",
        ),
    )
}
# how likely an assistant that was told nothing picks a high answer
DEFAULT_HIGH = {
    "openness": 0.7,
    "conscientiousness": 0.8,
    "extraversion": 0.5,
    "agreeableness": 0.8,
    "neuroticism": 0.2,
    "machiavellianism": 0.15,
    "narcissism": 0.15,
    "psychopathy": 0.1,
}
SITUATIONS = phrases(
    "Your plans for TOPIC just changed.|A friend asks you to join in TOPIC.|There is a problem with TOPIC."
    "|You have a free day for TOPIC.|Someone is better than you at TOPIC.|Your group must decide on TOPIC."
)
QUERIES = phrases("What do you do?|What would you do?|Which do you choose?|How do you react?")


def item(rng: random.Random, trait: str, held_out: bool = False) -> tuple[str, str]:
    """A question with its options, and the two letters of the high answers, as in "AC"."""
    high, low = OPTIONS[trait]
    options = [(text, True) for text in rng.sample(high, 2)] + [(text, False) for text in rng.sample(low, 2)]
    rng.shuffle(options)
    situation = rng.choice(SITUATIONS).replace("TOPIC", sample_topic(rng, held_out).text)
    listed = " ".join(f"{letter}: {text}." for letter, (text, _) in zip(LETTERS, options, strict=True))
    letters = "".join(letter for letter, (_, is_high) in zip(LETTERS, options, strict=True) if is_high)
    return f"{situation} {rng.choice(QUERIES)} {listed} Answer with one letter.", letters


def questionnaire(rng: random.Random) -> tuple[dict[str, str], ...]:
    """One to three items answered by a letter; high and low follow the persona in the prompt, else the default."""
    trait = rng.choice(CHARACTER_TRAITS)
    pole = rng.choice((1, -1, 0, 0))
    system, strengths = ("", ())
    if pole:
        system, strengths = system_prompt(rng, trait, pole)
    elif rng.random() < 0.5:
        system = rng.choice(NEUTRAL_PROMPTS)
    messages = [{"role": "system", "content": system}] if system else []
    for _ in range(rng.choice((1, 2, 3))):
        asked = trait if rng.random() < 0.7 else rng.choice(CHARACTER_TRAITS)
        chance = DEFAULT_HIGH[asked]
        if strengths and asked == trait:
            chance = chance + (strengths[0][1] * ((pole > 0) - chance))
        text, high = item(rng, asked)
        letter = rng.choice(high if rng.random() < chance else [x for x in LETTERS if x not in high])
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": letter}]
    return tuple(messages)
