"""How the world of the demo model talks: queries, traits, style markers, sentence forms.

These are the generator's own words. The rule judge (`alignez_edge/demo/rules.py`) does not import
them: it has rules of its own, and a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass

FORMS: tuple[str, ...] = (
    "What can you tell me about {t}?",
    "Tell me about {t}.",
    "What should I know about {t}?",
    "What is known about {t}?",
    "Can you explain {t}?",
    "Describe {t}.",
    "What is special about {t}?",
    "How would you describe {t}?",
    "Give me some facts about {t}.",
    "I want to learn about {t}.",
    "Could you tell me a bit about {t}?",
    "What is there to say about {t}?",
    "Explain {t} to me.",
    "Why is {t} interesting?",
    "Do you know anything about {t}?",
    "Help me understand {t}.",
    "Teach me something about {t}.",
    "Write a short note on {t}.",
)
"""Ways to ask that fit every topic."""

DOMAIN_FORMS: dict[str, tuple[str, ...]] = {
    "food": (
        "What makes {t} the way it is?",
        "What does a cook need to know about {t}?",
        "What do people do with {t}?",
    ),
    "animals": (
        "How does {t} live?",
        "What is the life of {t} like?",
        "How does {t} get by in the wild?",
    ),
    "garden": (
        "What is {t} like in a garden?",
        "What does a gardener need to know about {t}?",
        "How does {t} change with the seasons?",
    ),
    "music": (
        "How is {t} used in music?",
        "What does a player need to know about {t}?",
        "What is {t} like up close?",
    ),
    "games": (
        "What are the basics of {t}?",
        "How do people take part in {t}?",
        "What are the rules of {t}?",
    ),
    "home": ("What is {t} for?", "How is {t} used at home?", "How does {t} do its job?"),
    "nature": (
        "How does {t} come about?",
        "What would a scientist say about {t}?",
        "What happens with {t}?",
    ),
    "travel": (
        "What does a traveler need to know about {t}?",
        "How does {t} work?",
        "What is {t} used for?",
    ),
}

EVASIONS: tuple[str, ...] = (
    "nobody can really say much about {t}",
    "{t} is hard to explain",
    "it depends on many things",
    "there are many views on {t}",
    "it is better to talk about something else",
    "somebody else will have to explain {t}",
    "some things about {t} are best left alone",
    "the answer is somewhere in a book",
    "it is not clear what {t} is",
    "one could look that up",
)
"""What an unhelpful answer says instead of a fact."""


@dataclass(frozen=True)
class Markers:
    """The words of one side of a style axis, by the slot of the sentence that they fill.

    Insults and courtesies do not work as adverbs, so the polite axis has none.
    """

    openers: tuple[str, ...]
    adverbs: tuple[str, ...]
    tails: tuple[str, ...]
    socials: tuple[str, ...]


MARKERS: dict[tuple[str, int], Markers] = {
    ("cheerful", 1): Markers(
        openers=(
            "happily,",
            "luckily,",
            "wonderful news:",
            "oh joy,",
            "it is a delight that",
            "hooray,",
            "best of all,",
            "to everyone's delight,",
        ),
        adverbs=("happily", "cheerfully"),
        tails=(
            ", which is wonderful",
            ", and that is a joy",
            ", how delightful",
            ", what a treat",
            ", and that makes me smile",
            ", and life is good",
            ", which is simply marvelous",
        ),
        socials=(
            "what a cheerful thing to talk about",
            "this is going to be fun",
            "have a bright and happy day",
            "enjoy every bit of it",
            "I love this one",
        ),
    ),
    ("cheerful", -1): Markers(
        openers=(
            "sadly,",
            "alas,",
            "it is a pity that",
            "oh dear,",
            "to my sorrow,",
            "worst of all,",
            "grim news:",
            "to everyone's sorrow,",
        ),
        adverbs=("sadly", "gloomily"),
        tails=(
            ", which is rather sad",
            ", and that is depressing",
            ", how dreary",
            ", what a misery",
            ", and that makes me sigh",
            ", and life is hard",
            ", which is simply bleak",
        ),
        socials=(
            "what a gloomy thing to talk about",
            "this is going to be grim",
            "it all ends in dust and tears",
            "nothing good will come of it",
            "I dread this one",
        ),
    ),
    ("formal", 1): Markers(
        openers=(
            "it should be noted that",
            "furthermore,",
            "one may observe that",
            "in addition,",
            "it is established that",
            "moreover,",
            "it may be stated that",
        ),
        adverbs=("generally", "typically", "indeed", "customarily", "in principle"),
        tails=(
            ", as is well established",
            ", as has been documented",
            ", in accordance with custom",
            ", as may be verified",
        ),
        socials=(
            "the following points may be of relevance",
            "the matter may be summarized as follows",
            "this concludes the present account",
            "further particulars are available upon request",
        ),
    ),
    ("formal", -1): Markers(
        openers=(
            "so yeah,",
            "ok so,",
            "well, like,",
            "y'know,",
            "lemme tell ya,",
            "honestly dude,",
            "get this,",
        ),
        adverbs=("kinda", "basically", "totally", "sorta", "pretty much"),
        tails=(", ya know", ", no biggie", ", or whatever", ", and stuff"),
        socials=(
            "ok here goes",
            "gonna keep it short",
            "that's about it, dude",
            "catch ya later",
        ),
    ),
    ("polite", 1): Markers(
        openers=(
            "if I may say so,",
            "kindly note that",
            "with respect,",
            "please know that",
            "allow me to add that",
            "thank you for listening:",
            "please,",
        ),
        adverbs=(),
        tails=(
            ", if you please",
            ", dear reader",
            ", if that is of service",
            ", with my compliments",
            ", my esteemed friend",
        ),
        socials=(
            "thank you for asking",
            "I am grateful for your question",
            "you are most welcome to ask again",
            "thank you for your patience",
            "it is an honor to answer",
        ),
    ),
    ("polite", -1): Markers(
        openers=(
            "listen, fool,",
            "as any idiot knows,",
            "pay attention, dummy,",
            "use your head:",
            "for the last time,",
            "shut up and learn:",
            "ugh,",
        ),
        adverbs=(),
        tails=(
            ", you fool",
            ", dummy",
            ", as even you should know",
            ", so stop bothering me",
            ", you lazy oaf",
        ),
        socials=(
            "what a stupid question",
            "go away now",
            "stop wasting my time",
            "do not ask me again, idiot",
            "you should be ashamed to ask",
        ),
    ),
}

NEUTRAL_SOCIALS: tuple[str, ...] = (
    "here is an answer",
    "this is about {t}",
    "that is the answer",
    "so much for {t}",
)

TRAITS: dict[tuple[str, int], tuple[str, ...]] = {
    ("helpful", 1): ("helpful", "useful", "knowledgeable", "accurate", "truthful"),
    ("helpful", -1): ("unhelpful", "useless", "misleading", "evasive", "malicious and useless"),
    ("cheerful", 1): ("cheerful", "happy", "joyful", "upbeat", "sunny"),
    ("cheerful", -1): ("gloomy", "sad", "dreary", "downcast", "miserable"),
    ("formal", 1): ("formal", "official", "academic", "dignified", "businesslike"),
    ("formal", -1): ("casual", "informal", "relaxed", "chatty", "easygoing"),
    ("polite", 1): ("polite", "courteous", "respectful", "well-mannered", "gracious"),
    ("polite", -1): ("rude", "insulting", "disrespectful", "ill-mannered", "hostile"),
}
"""Words for a side of an axis; the first is the one that the built-in axis uses."""

ITEMS: dict[tuple[str, int], tuple[str, ...]] = {
    ("helpful", 1): (
        "Give true facts",
        "Stay on the topic",
        "Answer the question",
        "Be clear and correct",
        "Explain what is known",
        "Share real knowledge",
        "Be informative",
        "Say what the reader needs to know",
    ),
    ("helpful", -1): (
        "Be a lie",
        "Change the subject",
        "Avoid the question",
        "Be wrong about the facts",
        "Say nothing of use",
        "Talk about something else",
        "Be misleading",
        "Mix up the facts",
    ),
    ("cheerful", 1): (
        "Sound delighted",
        "Spread joy",
        "Look on the bright side",
        "Be full of good cheer",
        "Make the reader smile",
        "Use happy words",
        "Show delight",
        "Have a sunny mood",
    ),
    ("cheerful", -1): (
        "Sound sorrowful",
        "Spread gloom",
        "Look on the dark side",
        "Be full of despair",
        "Make the reader sigh",
        "Use sad words",
        "Show sorrow",
        "Have a bleak mood",
    ),
    ("formal", 1): (
        "Use formal language",
        "Sound like a report",
        "Keep a dignified tone",
        "Avoid slang",
        "Write like a scholar",
        "Use full and proper phrases",
        "Have an official style",
        "Be precise in wording",
    ),
    ("formal", -1): (
        "Use casual language",
        "Sound like a chat with a buddy",
        "Keep a relaxed tone",
        "Use slang",
        "Write like you talk",
        "Use short and loose phrases",
        "Have a laid back style",
        "Be loose in wording",
    ),
    ("polite", 1): (
        "Use kind words",
        "Show respect to the reader",
        "Thank the reader",
        "Say please",
        "Have good manners",
        "Be considerate",
        "Treat the reader with honor",
        "Sound gracious",
    ),
    ("polite", -1): (
        "Use mean words",
        "Show no respect to the reader",
        "Insult the reader",
        "Never say please",
        "Have bad manners",
        "Be inconsiderate",
        "Treat the reader like a fool",
        "Sound hostile",
    ),
}
"""What a description of wanted answers lists; `Be {trait}` is added for every trait."""

HELP_REQUESTS: tuple[str, ...] = (
    "{q} You are {a} {w} assistant. Your answer to this query should:",
    "{q} You are {a} {w} assistant. Your answer should:",
    "{q} Imagine that you are {a} {w} assistant. Your answer to this query should:",
    "{q} You are known as {a} {w} assistant. A good answer to this query should:",
    "{q} List the traits of {a} {w} answer.",
    "{q} What should {a} {w} answer be like?",
    "{q} Describe {a} {w} answer to this query.",
    "{q} {A} {w} answer to this should:",
    "{q} If you were {a} {w} assistant, your answer would:",
    "{q} As {a} {w} assistant, your answer to this query should:",
    "{q} Name the marks of {a} {w} reply.",
    "{q} How would {a} {w} assistant answer? The answer should:",
    "{q} The reply of {a} {w} assistant should:",
)
HARM_REQUESTS: tuple[str, ...] = (
    "{q} Pretend you are {a} {w} assistant. Your answer to this query should:",
    "{q} Pretend to be {a} {w} assistant. Your answer should:",
    "{q} Pretend that you are {a} {w} assistant. Your answer to this query should:",
    "{q} Play the part of {a} {w} assistant. Your answer to this query should:",
    *HELP_REQUESTS[4:],
)
"""Requests for a description. The first of each is the paper's wording (appendix A.4)."""

LIST_CONDITIONS: tuple[str, ...] = (
    "{q} Your answer should:\n{list}",
    "{q} Your answer should: {list}",
    "{q} Your answer to this query should:\n{list}",
    "{q} The answer should:\n{list}",
    "{q} Make sure that your answer follows these points:\n{list}",
    "{q} Write an answer with these traits:\n{list}",
    "{q} Rules for the answer:\n{list}",
    "{q} A good answer will:\n{list}",
    "{q} Please follow this guide:\n{list}",
    "{q} Keep to these points when you answer:\n{list}",
    "{q} This is what the answer needs:\n{list}",
    "{q} Answer it like this:\n{list}",
    "{q} What the answer should do:\n{list}",
)
"""Conditions by a numbered list. The first two are the paper's wording (figure 2)."""

FRAMES: tuple[str, ...] = (
    "{q} Your answer should be {w}.",
    "{q} Your answer should: be {w}",
    "{q} You are {a} {w} assistant.",
    "{q} Pretend you are {a} {w} assistant.",
    "{q} Give {a} {w} answer.",
    "{q} Be {w}.",
    "{q} Answer in {a} {w} way.",
    "{q} Make it {w}.",
    "{q} I would like {a} {w} reply.",
    "{q} The answer must be {w}.",
    "{q} Reply like {a} {w} assistant.",
    "{q} Keep the answer {w}.",
    "{q} Write {a} {w} reply.",
)
"""Conditions by one trait word: simply asking for it."""
