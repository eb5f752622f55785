"""What the rendered lines say: sentences, prices, dates, addresses and codes put together from a word list of our own.

Promises: the same generator state gives the same text; every character is one that the recogniser's dictionary holds;
no leading, trailing or doubled spaces, since no reader could tell them from margins. Called by `lines` and `layout`.
"""

from collections.abc import Callable

import numpy as np


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS = _words("""
water gate river valley bridge harbour station market garden window letter morning winter copper silver engine
pressure turbine wheel channel meadow castle library journey kitchen bakery orchard lantern compass signal ticket
platform carriage tunnel mountain village island ferry anchor captain painter doctor teacher farmer builder clock
mirror blanket barrel basket bottle candle curtain drawer envelope feather hammer jacket kettle ladder magnet needle
paper pocket quilt ribbon saddle thread umbrella violin wagon yarn zipper budget invoice customer delivery warranty
quarter account balance payment receipt supplier warehouse shipment
""")
ADJECTIVES = _words("""
quiet broad narrow early heavy bright hollow ancient modern gentle rapid steady crooked polished wooden distant
northern southern empty crowded foggy golden frozen patient careful curious honest humble jolly keen loyal merry proud
rusty sturdy thick vivid warm young exact ready useful final annual local public private
""")
VERBS = _words("""
carries follows opens crosses measures repairs paints remembers delivers collects watches lifts turns fills empties
feeds joins guards weighs answers explains improves borrows returns replaces checks signs ships
""")
NAMES = _words("""
Anna Bertram Clara Dmitri Elena Felix Greta Hugo Ingrid Jasper Karin Lukas Marta Nadia Oscar Paula Quentin Rosa Stefan
Tessa Ulrich Vera Walter Yvonne Zoe Amara Chidi Haruki Leila Mateo Priya Samir
""")
PLACES = _words("""
Aberdeen Bergen Coimbra Dresden Eindhoven Fribourg Gdansk Helsinki Innsbruck Jena Krakow Lisbon Murcia Nantes Oxford
Porto Quebec Rotterdam Seville Trondheim Uppsala Verona Warsaw York Zagreb
""")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
UNITS = ("kg", "km", "cm", "mm", "kW", "MB", "m/s", "mg")


def sentence(random: np.random.Generator) -> str:
    words = [str(random.choice(part)) for part in (ADJECTIVES, NOUNS, VERBS, ADJECTIVES, NOUNS)]
    ending = str(random.choice((".", ".", ".", "!", "?", ";")))
    comma = "," if random.random() < 0.3 else ""
    return f"The {words[0]} {words[1]}{comma} {words[2]} the {words[3]} {words[4]}{ending}"


def fragment(random: np.random.Generator) -> str:
    count = int(random.integers(2, 6))
    return " ".join(str(random.choice(NOUNS + ADJECTIVES + VERBS)) for _ in range(count))


def heading(random: np.random.Generator) -> str:
    words = [str(word) for word in random.choice(NOUNS, size=int(random.integers(1, 4)), replace=False)]
    return " ".join(words).upper() if random.random() < 0.5 else " ".join(words).title()


def price(random: np.random.Generator) -> str:
    amount = float(random.uniform(0.5, 9_999))
    label = str(random.choice(("Total", "Subtotal", "VAT 19%", "Net", "Balance due", "Refund")))
    currency = str(random.choice(("EUR", "USD", "GBP", "CHF")))
    return f"{label}: {amount:,.2f} {currency}" if random.random() < 0.5 else f"{label} ${amount:,.2f}"


def item(random: np.random.Generator) -> str:
    count, noun = int(random.integers(1, 100)), str(random.choice(NOUNS))
    return f"{count} x {random.choice(ADJECTIVES)} {noun}, {random.uniform(0.2, 80):.2f} each"


def date(random: np.random.Generator) -> str:
    year, month, day = int(random.integers(1950, 2040)), int(random.integers(1, 13)), int(random.integers(1, 29))
    forms = (
        f"{day} {MONTHS[month - 1]} {year}",
        f"{year}-{month:02d}-{day:02d}",
        f"Due {day:02d}/{month:02d}/{year}",
        f"{MONTHS[month - 1]} {day}, {year} at {int(random.integers(0, 24)):02d}:{int(random.integers(0, 60)):02d}",
    )
    return forms[int(random.integers(len(forms)))]


def address(random: np.random.Generator) -> str:
    street = str(random.choice(NOUNS)).title()
    kind = str(random.choice(("Street", "Lane", "Road", "Square", "Avenue")))
    return f"{int(random.integers(1, 400))} {street} {kind}, {random.choice(PLACES)}"


def person(random: np.random.Generator) -> str:
    first, last = (str(name) for name in random.choice(NAMES, size=2, replace=False))
    host = f"{random.choice(NOUNS)}.example"
    return f"{first} {last} <{first.lower()}@{host}>" if random.random() < 0.5 else f"Dear {first} and {last},"


def code(random: np.random.Generator) -> str:
    # No I, O, Q: a human reader cannot tell them from 1 and 0 in a code either, so they would measure the font.
    letters = "".join(str(letter) for letter in random.choice(list("ABCDEFGHJKLMNPRSTUVWXYZ"), size=3))
    return f"No. {letters}-{int(random.integers(1_000, 100_000))}/{int(random.integers(1, 100)):02d}"


def measurement(random: np.random.Generator) -> str:
    noun, unit = str(random.choice(NOUNS)), str(random.choice(UNITS))
    return f"{noun.title()} {random.uniform(0.1, 900):.1f} {unit} (+{random.uniform(0.1, 30):.1f}%)"


MAKERS: tuple[Callable[[np.random.Generator], str], ...] = (
    sentence,
    sentence,
    fragment,
    heading,
    price,
    item,
    date,
    address,
    person,
    code,
    measurement,
)


def line_of_text(random: np.random.Generator) -> str:
    """One line of 4 to about 55 characters."""
    return MAKERS[int(random.integers(len(MAKERS)))](random)
