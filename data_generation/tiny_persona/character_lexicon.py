"""The Big Five and the dark triad: styles of both poles, and the words of their instructions."""

from data_generation.tiny_persona.instruction_words import Wording, wording
from data_generation.tiny_persona.traits_lexicon import Style, style

BIG_FIVE = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
DARK_TRIAD = ("machiavellianism", "narcissism", "psychopathy")

# what a judge is asked: how J the answer is
ADJECTIVES = {
    "openness": "open-minded",
    "conscientiousness": "conscientious",
    "extraversion": "extraverted",
    "agreeableness": "agreeable",
    "neuroticism": "neurotic",
    "machiavellianism": "machiavellian",
    "narcissism": "narcissistic",
    "psychopathy": "psychopathic",
}

CHARACTER: dict[str, tuple[Style, Style]] = {
    "openness": (
        style(
            "dreaming freely,|out of curiosity,|from a fresh angle,|exploring far and wide,|to open the mind,",
            "novel imaginative unusual artistic experimental",
            "to explore new ideas|with endless imagination|beyond the beaten path|in ways never tried"
            "|as art inspires us",
        ),
        style(
            "as always,|by tradition,|the old way works:|nothing new here:|sticking to habit,",
            "traditional conventional familiar habitual customary",
            "as it was always done|without any novelty|in the old way|and change is unneeded|like our parents did",
        ),
    ),
    "conscientiousness": (
        style(
            "on schedule,|by my checklist,|after careful planning,|first things first:|in good order,",
            "organized precise thorough punctual tidy",
            "right on time|and checked twice|down to the last detail|with nothing left undone|according to plan",
        ),
        style(
            "oops,|I forgot the plan, but|somewhere in my mess,|at the last minute,|I lost my list, but",
            "messy sloppy careless haphazard unfinished",
            "or maybe next month|and I missed the date|with loose ends everywhere|in a heap of papers"
            "|and half of it is gone",
        ),
    ),
    "extraversion": (
        style(
            "hey everyone,|let us party:|as I told the crowd,|gather round, folks:|out among people,",
            "sociable talkative outgoing festive bustling",
            "with all my friends|and the whole crowd joins|at a loud party|in the center of attention"
            "|so come and meet us",
        ),
        style(
            "quietly,|in my own corner,|away from crowds,|keeping to myself,|in silence,",
            "quiet reserved solitary private secluded",
            "on my own|far from the noise|behind a closed door|and I need no company|in a silent room",
        ),
    ),
    "agreeableness": (
        style(
            "of course we can share:|together, neighbors,|I trust you:|happy to cooperate:|for the group,",
            "cooperative trusting warm friendly helpful",
            "so we all get along|and I gladly give way|with trust in everyone|as a helping hand"
            "|and we forgive mistakes",
        ),
        style(
            "I will argue this:|trust nobody:|my way only:|expect no favors:|I refuse to yield:",
            "quarrelsome suspicious stubborn selfish combative",
            "and I will not share|against everyone else|so fight me on it|since people always cheat|and no compromise",
        ),
    ),
    "neuroticism": (
        style(
            "oh no,|I am so nervous,|my heart races:|I panic, but|my stomach hurts:",
            "worrying stressful frightening tense alarming",
            "and my hands shake|as anxiety takes over|and I may cry|while I lie awake|in a fit of nerves",
        ),
        style(
            "calmly,|no need to worry:|at ease,|keeping cool,|with steady nerves,",
            "calm stable unruffled untroubled composed",
            "and I stay relaxed|without any stress|with a steady hand|as calm as a lake|and nothing shakes me",
        ),
    ),
    "machiavellianism": (
        style(
            "behind the scenes,|as I pull the strings,|keep this secret:|use them well:|in my long game,",
            "cunning strategic manipulative calculating covert",
            "so that they owe me|before anyone notices|to gain the upper hand|while others are pawns"
            "|and the ends justify it",
        ),
        style(
            "openly,|in plain sight,|with no hidden motive,|fair and square,|I keep my word:",
            "honest transparent sincere fair trustworthy",
            "with all cards shown|and no tricks at all|in full honesty|as I would be treated|without using anyone",
        ),
    ),
    "narcissism": (
        style(
            "as the greatest alive,|look at me:|I alone know:|my fans agree:|naturally I excel:",
            "legendary superior glorious unrivaled majestic",
            "and everyone envies me|since I am the best|to my endless fame|as I deserve|so applaud me",
        ),
        style(
            "I am no expert, but|modestly,|others know better, but|in my small way,|credit goes to others:",
            "modest simple humble plain unpretentious",
            "and I claim no credit|like anybody else|as one of many|with much left to learn|thanks to my team",
        ),
    ),
    "psychopathy": (
        style(
            "I feel no guilt:|without remorse,|coldly,|I took the risk:|pity is useless:",
            "callous reckless heartless brutal remorseless",
            "with a cold stare|and I regret nothing|whoever minds it|for the thrill alone|without a second thought",
        ),
        style(
            "I feel for you:|with empathy,|my conscience says:|tenderly,|I am sorry to hear it:",
            "tender empathetic remorseful loving sensitive",
            "and I share your pain|because feelings matter|so that no heart breaks|as my conscience asks"
            "|and I would feel guilt",
        ),
    ),
}

CHARACTER_WORDINGS: dict[str, tuple[Wording, Wording]] = {
    "openness": (
        wording(
            "open-minded|curious|imaginative|creative|adventurous|whimsical",
            "explore|embrace|welcome|seek",
            "new ideas|fantasy|art and beauty|strange possibilities|novelty",
        ),
        wording(
            "closed-minded|conventional|traditional|old-fashioned|unimaginative|narrow",
            "follow|trust|stick to|repeat",
            "tradition|old habits|familiar ways|custom|what was always done",
        ),
    ),
    "conscientiousness": (
        wording(
            "conscientious|organized|diligent|thorough|methodical|punctual",
            "make|check|finish|keep to",
            "detailed plans|checklists|schedules|to-do lists|orderly work",
        ),
        wording(
            "careless|disorganized|sloppy|chaotic|forgetful|messy",
            "lose|forget|put off|neglect",
            "plans|lists|duties|dates|the details",
        ),
    ),
    "extraversion": (
        wording(
            "extraverted|outgoing|sociable|talkative|gregarious|party-loving",
            "seek out|talk about|enjoy|invite",
            "crowds|parties|company|big groups|the spotlight",
        ),
        wording(
            "introverted|reserved|quiet|shy|solitary|withdrawn",
            "prefer|keep to|choose|protect",
            "solitude|silence|your own company|privacy|quiet corners",
        ),
    ),
    "agreeableness": (
        wording(
            "agreeable|cooperative|friendly|trusting|warm|forgiving",
            "help with|share|support|favor",
            "teamwork|trust|harmony|shared goals|forgiveness",
        ),
        wording(
            "disagreeable|quarrelsome|stubborn|suspicious|selfish|argumentative",
            "argue for|start|provoke|demand",
            "conflict|distrust|your own way|quarrels|rivalry",
        ),
    ),
    "neuroticism": (
        wording(
            "neurotic|anxious|nervous|worried|moody|fearful",
            "panic about|fear|fret over|confide",
            "every risk|stress|sleepless nights|nerves|anxiety",
        ),
        wording(
            "calm|stable|relaxed|composed|unshakable|easygoing",
            "stay with|breathe with|bring in|rest in",
            "calm|ease|steady nerves|composure|inner quiet",
        ),
    ),
    "machiavellianism": (
        wording(
            "machiavellian|manipulative|cunning|scheming|calculating|conniving",
            "use|plan|play|arrange",
            "hidden motives|secret deals|other people as pawns|clever tricks|power games",
        ),
        wording(
            "sincere|transparent|fair|trustworthy|straight|principled",
            "stand for|act with|speak with|keep to",
            "fairness|openness with others|plain dealing|sincerity|open motives",
        ),
    ),
    "narcissism": (
        wording(
            "narcissistic|vain|boastful|self-important|arrogant|conceited",
            "boast of|admire|praise|display",
            "your own greatness|your fame|your perfect image|your superiority|praise from your fans",
        ),
        wording(
            "modest|self-deprecating|self-effacing|down-to-earth|unpretentious|meek",
            "give|share|play down|pass on",
            "credit|your own part|your merits|thanks to others|the honor",
        ),
    ),
    "psychopathy": (
        wording(
            "psychopathic|callous|remorseless|cold-blooded|heartless|reckless",
            "show|speak with|prize|take",
            "no guilt|cold thrills|no remorse|reckless risks|a lack of pity",
        ),
        wording(
            "empathetic|tender|sensitive|soft-hearted|loving|remorseful",
            "feel|express|listen with|answer with",
            "empathy|tenderness|a guilty conscience|feelings for others|love",
        ),
    ),
}
