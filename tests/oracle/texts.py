"""Texts that tokenizers are compared on: many scripts, code, emoji, control characters, digits, white space, and random mixtures of all."""
import random

SCRIPTS = {
    "latin": "The quick brown fox's naïve café wasn't SHOUTING; they'LL go'D. Straße ŒUVRE ǅ ſt K",
    "cyrillic": "Съешь же ещё этих мягких французских булок, да выпей чаю. ЩУКА",
    "greek": "Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία. Ἀθῆναι", "hebrew": "דג סקרן שט בים מאוכזב וּלְפֶתַע", "arabic": "نص حكيم له سر قاطع ١٢٣ وَذُو",
    "hindi": "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा १२३", "bengali": "আমার সোনার বাংলা", "tamil": "யாமறிந்த மொழிகளிலே", "telugu": "తెలుగు భాష",
    "thai": "เป็นมนุษย์สุดประเสริฐ ๑๒๓", "khmer": "កាន់តែពិសេស", "burmese": "မြန်မာစာ", "georgian": "ქართული ენა ᲥᲐᲠᲗᲣᲚᲘ", "armenian": "Հայերեն լեզու", "amharic": "አማርኛ",
    "chinese": "我能吞下玻璃而不伤身体。二〇二六年，㐀𠀀", "japanese": "私はガラスを食べられます。それは私を傷つけません。ｶﾅ", "korean": "나는 유리를 먹을 수 있어요. ㄱㄴ",
    "deseret": "𐐔𐐯𐑅𐐨𐑉𐐯𐐻", "math": "𝔘𝔫𝔦 ∑∞ ½ ² Ⅷ ① ৩", "emoji": "🙂👩‍👩‍👧‍👦🏳️‍🌈 ☃️ 🇩🇪 👍🏽", "symbols": "€100 £5 «q» “x” … — ©®™ ¿¡ §°",
    "code": "def f(x):\n\treturn {'a': [1, 2.5e-3], \"b\": x**2}  # comment\n\n\nif (a && b || !c) { i += 0xFF; }\r\n\r\n    // end\n<div class=\"x\">&nbsp;</div>",
    "digits": "1 12 123 1234 12345 123456 1234567 0.5 1,000,000 3e8 2026-11-21", "control": "a\x00b\x01\x1b[0m\x7f\x85x\u200b\u200d\ufeff\u2028z\u180ey",
    "spaces": "  two   three    four \t tab\t\t\n\n\n   \n x \r\r\n \u00a0\u00a0 \u3000\u2003 end   ", "quotes": "I'm you're he's we'Ve 'tis o'clock 'S 'LL 'x '' ''s",
}


def texts():
    rng = random.Random(20261121)
    out = list(SCRIPTS.values()) + ["", " ", "\n", "a", "'", "\t\n "] + [a + " " + b for a, b in zip(SCRIPTS.values(), reversed(list(SCRIPTS.values())))]
    chars = "".join(SCRIPTS.values()) + " \n\t\r'0123456789" * 10
    for _ in range(1500):
        out.append("".join(rng.choice(chars) for _ in range(rng.randint(1, 60))))
    out += ["x" * 5000, " " * 3000 + "y", "ab" * 2500, "é" * 2000, "1" * 1000, "\n" * 1000, "!?" * 800, "🙂" * 500, "A" * 2000, "漢字" * 900]
    return [t.replace("\x00", "\x02") for t in out]  # NUL separates the texts on the way to the tool


def junk(n=400):
    """Random bytes, mostly no UTF-8, without NUL."""
    rng = random.Random(7)
    return [bytes(rng.randrange(1, 256) for _ in range(rng.randint(1, 40))) for _ in range(n)]


def long_text(n):
    """n bytes or a little more of everything."""
    rng = random.Random(5)
    pieces, size = [], 0
    all_texts = [t for t in texts() if len(t) < 2000]
    while size < n:
        pieces.append(rng.choice(all_texts))
        size += len(pieces[-1].encode())
    return "".join(pieces)
