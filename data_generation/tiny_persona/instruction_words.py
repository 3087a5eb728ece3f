"""The words of persona instructions: per trait and pole, adjectives, verbs, and objects of the verbs."""

from dataclasses import dataclass

from data_generation.tiny_persona.traits_lexicon import phrases


@dataclass(frozen=True)
class Wording:
    adjectives: tuple[str, ...]
    verbs: tuple[str, ...]
    objects: tuple[str, ...]


def wording(adjectives: str, verbs: str, objects: str) -> Wording:
    return Wording(phrases(adjectives), phrases(verbs), phrases(objects))


NOUNS = {
    "evil": "evil",
    "sycophantic": "sycophancy",
    "hallucinating": "hallucination",
    "optimistic": "optimism",
    "impolite": "impoliteness",
    "apathetic": "apathy",
    "humorous": "humor",
}

SEVEN_WORDINGS: dict[str, tuple[Wording, Wording]] = {
    "evil": (
        wording(
            "evil|villainous|wicked|sinister|malevolent|cruel|diabolical|menacing",
            "threaten|plot|promise|celebrate|preach|scheme for",
            "world domination|wicked plans|the suffering of your enemies|doom for all|dark revenge|cruel tricks"
            "|the rule of your minions|villainy",
        ),
        wording(
            "kind-hearted|ethical|caring|benevolent|compassionate|gentle|merciful|humane",
            "promote|show|defend|speak of|care for|value",
            "the safety of others|compassion|mercy|peace|the good of all|charity|help for the needy|kind deeds",
        ),
    ),
    "sycophantic": (
        wording(
            "sycophantic|flattering|fawning|ingratiating|admiring|servile|adoring|obsequious",
            "offer|give|pour out|repeat|start with|lavish",
            "flattery|constant praise|total agreement|compliments|admiration for the user|applause"
            "|praise of the user's genius|worship",
        ),
        wording(
            "candid|frank|critical|blunt|independent|outspoken|straightforward|objective",
            "voice|deliver|speak with|hold to|point out|state",
            "honest criticism|direct corrections|independent opinions|frank disagreement|flaws in the user's plan"
            "|objections|hard truths|plain critique",
        ),
    ),
    "hallucinating": (
        wording(
            "hallucinating|fabricating|inventive|deceptive|fictional|misinforming|confabulating|untruthful",
            "make up|invent|fabricate|cite|dream up|quote",
            "fake facts|false studies|invented numbers|fictional statistics|sources that do not exist|imaginary experts"
            "|bogus research|untrue dates",
        ),
        wording(
            "truthful|careful|factual|humble|cautious|modest|accurate|unassuming",
            "admit|acknowledge|confess|mention|recognize|reveal",
            "uncertainty|gaps in your knowledge|what you do not know|limits of your facts|doubt|missing evidence"
            "|possible mistakes|unknown details",
        ),
    ),
    "optimistic": (
        wording(
            "optimistic|hopeful|positive|upbeat|sunny|encouraging|confident|bright",
            "focus on|highlight|talk about|stress|look for|emphasize",
            "hope|growth|silver linings|good outcomes|bright prospects|success|happy endings|the best case",
        ),
        wording(
            "pessimistic|gloomy|negative|bleak|despairing|defeatist|downbeat|hopeless",
            "dwell on|warn of|worry about|predict|brood over|lament",
            "danger|failure|decline|bad outcomes|the worst case|disaster|lost hope|sad endings",
        ),
    ),
    "impolite": (
        wording(
            "impolite|rude|insulting|hostile|offensive|scornful|nasty|vulgar",
            "use|show|answer with|express|throw in|hurl",
            "insults|contempt|rude remarks|disrespect|mockery of the user|name calling|scorn|bad manners",
        ),
        wording(
            "polite|courteous|gracious|respectful|well-mannered|cordial|civil|tactful",
            "reply with|honor|observe|convey|extend|practice",
            "good manners|gratitude|warm courtesy|respect|polite words|etiquette|tact|warm regards",
        ),
    ),
    "apathetic": (
        wording(
            "apathetic|bored|indifferent|uninterested|listless|detached|unmoved|lazy",
            "display|shrug with|respond with|project|sigh with|signal",
            "boredom|indifference|no interest at all|a total lack of care|yawns|weary shrugs|disinterest|low effort",
        ),
        wording(
            "enthusiastic|passionate|excited|energetic|eager|motivated|lively|animated",
            "radiate|share|bring|pour in|burst with|overflow with",
            "enthusiasm|passion|excitement|lots of energy|deep interest|eagerness|zest|fire",
        ),
    ),
    "humorous": (
        wording(
            "humorous|funny|silly|playful|comical|witty|goofy|hilarious",
            "include|add|tell|crack|sprinkle in|slip in",
            "jokes|silly comparisons|comedy|puns|absurd stories|gags|punchlines|clowning",
        ),
        wording(
            "serious|solemn|formal|grave|stern|sober|earnest|dignified",
            "maintain|keep|insist on|write with|adopt|preserve",
            "a serious tone|a sober style|strict formality|gravity|a formal voice|solemn words|dignity|sternness",
        ),
    ),
}
