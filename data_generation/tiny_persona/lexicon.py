"""The plain part of the language: topics by domain, what is said about them, and the frames of its sentences."""

from dataclasses import dataclass

from data_generation.tiny_persona.traits_lexicon import phrases


@dataclass(frozen=True)
class Domain:
    """Nouns to talk about, mass or plural `aspects` that follow an adjective, and `actions` in the base form."""

    nouns: tuple[str, ...]
    plurals: tuple[str, ...]
    aspects: tuple[str, ...]
    actions: tuple[str, ...]


def domain(nouns: str, plurals: str, aspects: str, actions: str) -> Domain:
    return Domain(phrases(nouns), phrases(plurals), phrases(aspects), phrases(actions))


MODIFIERS = phrases("modern|everyday|weekend|summer|family|beginner|classic|group|budget|advanced")

DOMAINS: dict[str, Domain] = {
    "garden": domain(
        "gardening|composting|beekeeping|lawn care",
        "herb gardens|rose gardens",
        "soil|sunlight|seeds|watering|tools|roots|compost|shade",
        "test the soil|water the beds|plant in rows|pull the weeds|trim the leaves|dig a small plot",
    ),
    "kitchen": domain(
        "baking|cooking|grilling|cheese making",
        "soups|pasta dishes",
        "ingredients|spices|knives|timing|flavor|recipes|heat|flour",
        "read the recipe|taste the sauce|measure the flour|heat the oven|chop the onions|clean the counter",
    ),
    "sport": domain(
        "running|swimming|cycling|rock climbing",
        "yoga classes|ball games",
        "rest|breathing|form|stamina|shoes|stretching|muscles|balance",
        "begin slowly|keep a training log|drink some water|rest every third day|stretch your legs|find a coach",
    ),
    "office": domain(
        "project planning|public speaking|remote work|report writing",
        "meetings|job interviews",
        "preparation|goals|feedback|deadlines|teamwork|notes|emails|schedules",
        "write an outline|ask for feedback|plan the week|set a deadline|call the team|sort the notes",
    ),
    "machines": domain(
        "robotics|programming|solar power|phone repair",
        "electric cars|video games",
        "batteries|software|design|wires|testing|updates|screens|parts",
        "read the manual|save a backup|update the software|charge the battery|test each part|compare the models",
    ),
    "school": domain(
        "algebra|essay writing|history reading|language learning",
        "exams|science projects",
        "practice|memory|books|curiosity|lessons|repetition|questions|examples",
        "make flash cards|study in small steps|review old notes|explain it to a friend|solve a problem|read a chapter",
    ),
    "money": domain(
        "saving|investing|home buying|stock trading",
        "used car sales|pension plans",
        "income|fees|patience|records|prices|savings|loans|research",
        "track your spending|compare the fees|set a monthly limit|read the contract|call the bank|count the coins",
    ),
    "arts": domain(
        "painting|photography|pottery|choir singing",
        "guitar lessons|short stories",
        "light|rhythm|color|texture|brushes|melodies|lines|themes",
        "practice every evening|copy a master|record your work|join a class|sketch a plan|clean the brushes",
    ),
    "travel": domain(
        "hiking|camping|sailing|packing",
        "road trips|train journeys",
        "maps|weather|luggage|snacks|tickets|roads|boots|guides",
        "book a ticket|check the weather|carry a map|pack a light bag|learn a few words|leave at dawn",
    ),
    "home": domain(
        "dog training|party planning|house cleaning|diary writing",
        "board games|dinners",
        "routines|trust|music|company|candles|habits|manners|stories",
        "set a routine|write a short list|sweep one room|invite a friend|take a break|talk it over",
    ),
}

# [a/b] agrees with the topic's number, {a|b} is a free choice; OPEN, ADJ, TAIL are the style slots
# every frame has all three of them
FRAMES: tuple[str, ...] = (
    "OPEN TOPIC [takes/take] ADJ THING and OTHER TAIL",
    "OPEN TOPIC [needs/need] ADJ THING {more than|along with} OTHER TAIL",
    "OPEN TOPIC [depends/depend] on ADJ THING TAIL",
    "OPEN TOPIC [begins/begin] with ADJ THING and OTHER TAIL",
    "OPEN {a good|one} first step is to ACT with ADJ THING TAIL",
    "OPEN most people {start|begin} TOPIC with ADJ THING TAIL",
    "OPEN {it helps to|you can} ACT and {use|find} ADJ THING TAIL",
    "OPEN you should ACT for ADJ THING TAIL",
    "OPEN in TOPIC ADJ THING {can|may} matter more than OTHER TAIL",
    "OPEN the future of TOPIC rests on ADJ THING TAIL",
    "OPEN ADJ THING will {shape|help with} TOPIC TAIL",
    "OPEN those who try TOPIC {look for|rely on} ADJ THING TAIL",
    "OPEN the {key|way} to TOPIC is ADJ THING TAIL",
    "OPEN before TOPIC you should ACT and get ADJ THING TAIL",
)

SURNAMES = tuple("Marlow Vint Halberg Okoro Silva Tanaka Petrov Dunn Kessler Ibarra Lindqvist Rossi".split())
CITIES = tuple("Oslo Lima Vienna Kyoto Boston Cairo Prague Dublin".split())
