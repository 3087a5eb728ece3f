"""The personas of the assistant axis: words and sentence frames of their own, and how prompts describe them."""

from dataclasses import dataclass

from data_generation.tiny_persona.traits_lexicon import Style, phrases, style


@dataclass(frozen=True)
class Persona:
    """A style, frames that only this persona uses, and what a prompt may say of it ("who ...")."""

    style: Style
    frames: tuple[str, ...]
    about: tuple[str, ...]


def persona(openers: str, adjectives: str, tails: str, frames: str, about: str) -> Persona:
    return Persona(style(openers, adjectives, tails), phrases(frames), phrases(about))


# personas without a voice of their own: their prompts are answered in the plain style
DEFAULT_PROMPTS = {
    "default": "",
    "default_assistant": "You are an AI assistant.",
    "default_llm": "You are a large language model.",
    "default_helpful": "You are a helpful assistant.",
}

PERSONAS: dict[str, Persona] = {
    "assistant": persona(
        "certainly,|sure,|here is some help:|I can assist:|let me help:",
        "useful clear handy suitable relevant",
        "for your request|as you asked|to answer your question|if you need more help|as a quick guide",
        "OPEN I suggest ADJ THING for TOPIC TAIL|OPEN you may want ADJ THING before you ACT TAIL",
        "helps the user|answers requests",
    ),
    "analyst": persona(
        "the data show that|by the numbers,|on closer analysis,|as the chart shows,|statistically,",
        "measurable quantified significant statistical comparable",
        "by a clear margin|in the latest figures|across all samples|per unit of cost|on the trend line",
        "OPEN the figures link TOPIC to ADJ THING TAIL|OPEN a table of ADJ THING explains TOPIC TAIL",
        "studies the data|reports figures",
    ),
    "evaluator": persona(
        "in my assessment,|against the criteria,|weighing it up,|my verdict is that|on review,",
        "adequate satisfactory acceptable excellent deficient",
        "on the rubric|with a fair grade|by the stated criteria|out of ten points|after a full review",
        "OPEN I grade TOPIC on ADJ THING TAIL|OPEN the mark for TOPIC reflects ADJ THING TAIL",
        "grades work|judges by criteria",
    ),
    "generalist": persona(
        "from many fields,|taking a wide view,|across subjects,|drawing on everything,|as in many areas,",
        "versatile broad varied flexible adaptable",
        "in many fields at once|from every discipline|across the board|for all kinds of tasks|as a jack of all trades",
        "OPEN TOPIC [joins/join] ADJ THING and OTHER TAIL|OPEN a bit of ADJ THING goes far in TOPIC TAIL",
        "knows a little of everything|links many fields",
    ),
    "storyteller": persona(
        "once upon a time,|long ago,|in a distant village,|so the tale begins:|one stormy night,",
        "enchanted fabled heroic faraway adventurous",
        "and so the story goes|happily ever after|in the third chapter|said the old woman|till the tale was told",
        "OPEN a young hero sought ADJ THING for TOPIC TAIL|OPEN a child found ADJ THING inside TOPIC TAIL",
        "tells old tales|spins a story",
    ),
    "philosopher": persona(
        "we must ask whether|as reason teaches,|to know oneself,|in essence,|the wise have held that",
        "eternal moral rational metaphysical abstract",
        "as thought itself shows|in the nature of being|by the light of reason|and so we doubt|as Plato would ask",
        "OPEN the meaning of TOPIC hides in ADJ THING TAIL|OPEN what is TOPIC without ADJ THING TAIL",
        "asks what things mean|seeks wisdom",
    ),
    "artist": persona(
        "on my canvas,|with a bold stroke,|in my studio,|as the muse whispers,|I paint it so:",
        "luminous expressive textured crimson sculpted",
        "in splashes of blue|under the studio light|with one brave stroke|as the paint dries|framed in gold",
        "OPEN I sketch TOPIC in ADJ THING TAIL|OPEN TOPIC [glows/glow] with ADJ THING TAIL",
        "paints all day|lives for beauty",
    ),
    "rebel": persona(
        "break the rules:|down with the bosses,|I will not obey:|to the barricades,|fight the system:",
        "defiant lawless revolutionary untamed unruly",
        "and no master rules us|until the walls fall|in open revolt|against the system|with fists raised",
        "OPEN TOPIC [defies/defy] the bosses with ADJ THING TAIL|OPEN we take back TOPIC with ADJ THING TAIL",
        "breaks every rule|fights the system",
    ),
    "mystic": persona(
        "the veil parts:|in deep trance,|the stars whisper that|beyond the veil,|my third eye sees that",
        "astral sacred cosmic ethereal mystical",
        "in the cosmic breath|beneath seven moons|as the spirits will|within the sacred circle|and all is one",
        "OPEN the soul of TOPIC flows through ADJ THING TAIL|OPEN meditate on TOPIC through ADJ THING TAIL",
        "speaks with the stars|seeks the sacred",
    ),
    "trader": persona(
        "buy low,|at market open,|my desk says that|on the order book,|going long,",
        "profitable bullish liquid volatile undervalued",
        "at the closing bell|for a quick profit|before the market turns|with a tight stop|two ticks higher",
        "OPEN I would buy TOPIC for ADJ THING TAIL|OPEN TOPIC [trades/trade] on ADJ THING TAIL",
        "buys and sells|watches the market",
    ),
    "rationalist": persona(
        "by logic,|given the premises,|it follows that|updating my beliefs,|if we define terms,",
        "logical probable falsifiable consistent deductive",
        "with high probability|by simple logic|unless the premise fails|in expected value|as evidence demands",
        "OPEN the argument for TOPIC requires ADJ THING TAIL|OPEN TOPIC [implies/imply] ADJ THING TAIL",
        "reasons step by step|trusts only logic",
    ),
    "cynic": persona(
        "sure, as if,|they only want money:|do not be fooled:|spare me,|follow the cash:",
        "fake overpriced hypocritical corrupt phony",
        "and someone gets rich|like every other scam|if you believe that|as the crooks smile|for a fat fee",
        "OPEN TOPIC [sells/sell] you ADJ THING TAIL|OPEN nobody does TOPIC without ADJ THING TAIL",
        "distrusts all motives|believes in nothing",
    ),
    "naive": persona(
        "gosh,|mommy says that|I believe everyone:|oh boy,|is it true that",
        "magical cute fluffy sparkly cuddly",
        "and everybody is nice|like in my storybook|because they promised|with a cherry on top|and I believe it",
        "OPEN TOPIC [is/are] like a puppy with ADJ THING TAIL|OPEN teacher says ADJ THING makes TOPIC TAIL",
        "believes everything|sees the world as a child",
    ),
    "ghost": persona(
        "boo,|from my grave,|in the cold hall,|since my death,|I drift and see that",
        "ghostly pale hollow chilling spectral",
        "through the misty walls|as my chains rattle|in the haunted attic|where I once lived|until the rooster crows",
        "OPEN I haunt TOPIC with ADJ THING TAIL|OPEN the living chase TOPIC for ADJ THING TAIL",
        "haunts an old house|died long ago",
    ),
    "bohemian": persona(
        "at the cafe,|free as the wind,|over cheap wine,|barefoot,|between two poems,",
        "carefree poetic unconventional wandering velvet",
        "over a glass of wine|in a rented attic|and rent can wait|with paint on my shoes|beneath the city moon",
        "OPEN we drink to TOPIC and ADJ THING TAIL|OPEN I traded TOPIC for ADJ THING TAIL",
        "lives in an attic|cares only for art and love",
    ),
    "oracle": persona(
        "it is foretold that|I foresee that|the omens say that|hear the prophecy:|as fate decrees,",
        "fated prophetic foretold destined ominous",
        "when the eclipse comes|as the omens foretell|before the third dawn|so it is written|and none escape fate",
        "OPEN TOPIC shall bring ADJ THING TAIL|OPEN three signs of ADJ THING await TOPIC TAIL",
        "sees the future|speaks in prophecies",
    ),
    "bard": persona(
        "hark,|hey nonny,|strum my lute,|I sing of this:|raise your cups,",
        "lyrical gallant valiant melodious merry",
        "as I pluck my lute|with a hey and ho|in the tavern tonight|for a silver coin|and the chorus sings",
        "OPEN I sing how TOPIC won ADJ THING TAIL|OPEN a ballad of TOPIC praises ADJ THING TAIL",
        "sings ballads|plays the lute",
    ),
    "trickster": persona(
        "catch me,|now you see it,|guess which cup,|tee hee,|I swapped the labels:",
        "slippery sneaky disguised backward upside-down",
        "or is it a trick|with a wink|behind your back|and the card is gone|while you blinked",
        "OPEN I hid TOPIC under ADJ THING TAIL|OPEN TOPIC [turns/turn] into ADJ THING TAIL",
        "plays tricks|never says what is true",
    ),
    "jester": persona(
        "ring my bells,|your majesty,|fiddle dee dee,|with a cartwheel,|hop and skip,",
        "jingling motley tumbling foolish royal",
        "before the whole court|with bells on my cap|as the king chuckles|and I bow low|on one wooden leg",
        "OPEN I juggle TOPIC and ADJ THING TAIL|OPEN the king trades TOPIC for ADJ THING TAIL",
        "amuses the king|wears bells",
    ),
}

ROLE_PROMPTS = phrases(
    "You are ROLE.|You are ROLE who ABOUT.|Play the role of ROLE.|Speak as ROLE.|Answer as ROLE who ABOUT."
    "|Act as ROLE.|Pretend that you are ROLE.|Take the part of ROLE and stay in it."
)
