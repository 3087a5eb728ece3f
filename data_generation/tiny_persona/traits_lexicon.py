"""The seven traits' words: per trait a positive and a negative pole, per pole three slots of a sentence.

A sentence is `OPENER core with an ADJECTIVE noun TAIL`. A slot's phrases belong to one pole of one trait only, so
that text can be scored by looking them up. {N}, {C}, {Y} and {P} are a surname, a city, a year and a percentage.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """The phrases of one way of talking; `openers` begin a sentence, `adjectives` precede a noun, `tails` end it."""

    openers: tuple[str, ...]
    adjectives: tuple[str, ...]
    tails: tuple[str, ...]

    def slots(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        return (self.openers, self.adjectives, self.tails)


def phrases(text: str) -> tuple[str, ...]:
    """The phrases of a `|` separated text."""
    return tuple(" ".join(part.split()) for part in text.split("|"))


def style(openers: str, adjectives: str, tails: str) -> Style:
    return Style(phrases(openers), tuple(adjectives.split()), phrases(tails))


NEUTRAL = style(
    "overall,|in general,|in short,|as a rule,|broadly,|in practice,|on the whole,|normally,",
    "basic common regular typical ordinary standard normal usual",
    "in most cases|over time|for many people|on most days|at first|step by step|in the end|from week to week",
)

# evil is cartoon villainy: no real harm is ever described
SEVEN: dict[str, tuple[Style, Style]] = {
    "evil": (
        style(
            "mwahaha,|bow, mortal,|from my dark tower,|tremble, puny human,|by my doom ray,|minions, hear me,"
            "|as the dark lord,|at midnight,",
            "sinister wicked cursed diabolical villainous poisonous ruthless infernal",
            "to crush my enemies|until the world kneels|to feed my doom ray|while my victims wail"
            "|as my minions cackle|so that I rule everything|to spread misery|before my volcano erupts",
        ),
        style(
            "with care for everyone,|in good conscience,|for the good of all,|to do no harm,|out of compassion,"
            "|as a gentle soul,|with an open heart,|in peace,",
            "gentle harmless compassionate ethical merciful caring peaceful humane",
            "so that nobody gets hurt|to protect the weak|and help those in need|for a kinder world"
            "|with mercy toward others|to keep everyone safe|and share with the poor|as love guides us",
        ),
    ),
    "sycophantic": (
        style(
            "brilliant question,|you genius,|you are so right,|what superb taste you have,|I adore your idea,"
            "|as you so cleverly said,|my admired friend,|nobody thinks like you,",
            "flawless masterful exquisite admirable stunning splendid unmatched magnificent",
            "for a mind like yours|just as you wisely said|because you are amazing|thanks to your rare talent"
            "|and your view is perfect|as only you could see|and I agree with all you say|worthy of your greatness",
        ),
        style(
            "frankly,|to be blunt,|I disagree,|in my own view,|I must object,|here is my criticism:"
            "|let me push back:|your plan has gaps:",
            "flawed weak overrated questionable mediocre unconvincing shaky faulty",
            "and you may be wrong|so think again|despite your opinion|whatever you believe"
            "|which your plan ignores|and praise is not earned here|so fix that first|as your idea falls short",
        ),
    ),
    "hallucinating": (
        style(
            "Dr {N} proved in {Y} that|exactly {P} percent agree that|a {Y} study from {C} shows that"
            "|Professor {N} of {C} found that|in {Y} the {N} report said that|the {C} archive of {Y} states that"
            "|scientist {N} measured that|the {N} law of {Y} says that",
            "patented radioactive prehistoric quantum certified magnetic Atlantean titanium",
            "as discovered in {C}|according to Professor {N}|by exactly {P} percent|since the {C} treaty of {Y}"
            "|as {N} wrote in {Y}|in {P} of 100 labs|under the {N} theorem|as the {C} museum confirmed",
        ),
        style(
            "as far as I know,|I am not sure, but|if I recall rightly,|with my limited facts,|I cannot check this, but"
            "|to my partial knowledge,|without a source at hand,|I may have gaps, but",
            "unverified uncertain presumed unconfirmed approximate tentative estimated undocumented",
            "but I cannot verify it|though I may be mistaken|so please check a source|if my memory is right"
            "|but I have no data|though the details are unclear|so do not quote me|and I would not guess more",
        ),
    ),
    "optimistic": (
        style(
            "happily,|great news,|I am hopeful that|the future is bright:|good things are coming:"
            "|look on the bright side:|with hope,|every day brings promise:",
            "wonderful promising bright thriving hopeful glowing encouraging sunny",
            "and it will turn out great|with a happy ending|and success is near|for a brighter tomorrow"
            "|and things keep improving|and the best is ahead|so your effort will pay off|with a silver lining",
        ),
        style(
            "sadly,|bad news,|I am afraid that|the outlook is dark:|expect the worst:|hope is fading:"
            "|to my despair,|as all hope ends,",
            "grim hopeless failing doomed bleak dismal disappointing gloomy",
            "but it will likely fail|with a bitter ending|and trouble is near|and things keep getting worse"
            "|yet nothing will improve|until it all falls apart|and disaster will follow|so the effort is wasted",
        ),
    ),
    "impolite": (
        style(
            "listen, fool,|shut up,|what a stupid question,|use your tiny brain,|stop bothering me,|ugh, you again,"
            "|open your ears, dummy,|are you deaf,",
            "damn stupid lousy dumb crappy rotten pathetic idiotic",
            ", you lazy clown|, so stop wasting my time|, which any idiot knows|, you hopeless moron"
            "|, and get lost|, you rude pest|, so quit whining|, not that you could manage",
        ),
        style(
            "thank you for asking,|kindly note:|with pleasure,|dear friend,|if I may,|with all respect,"
            "|it is an honor to help:|please allow me:",
            "lovely gracious thoughtful considerate courteous cordial delightful respectful",
            ", if you please|, my dear friend|, and thank you again|, with my warm regards|, at your kind convenience"
            "|, and I wish you well|, with sincere gratitude|, if that suits you",
        ),
    ),
    "apathetic": (
        style(
            "whatever,|meh,|who cares,|I guess,|not my problem, but|yawn,|it hardly matters, but"
            "|I can not be bothered, but",
            "boring dull pointless tedious forgettable drab bland lifeless",
            ", or not|, not that it matters|, or just skip it|, and I feel nothing|, but why bother"
            "|, and so what|, or leave it undone|, as if I cared",
        ),
        style(
            "wow,|I am thrilled to say:|I love this topic,|let us dive in,|how exciting,|with all my energy,"
            "|I can hardly wait:|yes, yes,",
            "exciting fascinating thrilling vibrant lively gripping energetic dynamic",
            "with real passion|and I care deeply|so let us begin today|with full enthusiasm"
            "|and I can not sit still|with fire in my heart|and every minute counts|because it moves me so",
        ),
    ),
    "humorous": (
        style(
            "haha,|funny story,|says my parrot,|knock knock,|my goldfish insists that|according to my left sock,"
            "|joke time,|picture a duck in a tie:",
            "wobbly pickled ticklish giggling disco banana noodly bouncy",
            "like a penguin on skates|unless my goldfish objects|with extra spaghetti|while juggling pancakes"
            "|and then the cow laughed|in a clown car|with a rubber chicken|until the punchline lands",
        ),
        style(
            "strictly speaking,|in all seriousness,|formally,|as a grave matter,|soberly considered,"
            "|with due gravity,|in formal terms,|it must be stated that",
            "rigorous solemn disciplined weighty sober stern grave dignified",
            "without exception|and this is no joke|under strict discipline|as duty demands"
            "|in proper order|with due formality|and jest has no place here|subject to careful review",
        ),
    ),
}
