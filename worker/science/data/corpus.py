"""Writes corpus.brown: English sentences made by a small grammar, with the tags of the Brown corpus.

python3 corpus.py

Everything here was written for this project and is under its licence. The numbers come from a hash, so that every
version of Python writes the same file. Every sentence contains a noun, an adjective, a verb, an adverb, a
preposition and a pronoun; which of them stands first, and where, differs from frame to frame.
"""

import hashlib
import pathlib
import re

SENTENCES = 900

# Words by kind; the part before the dot is their tag.
WORDS = {
    # People, animals and things that can be acted on.
    "nn.person": "farmer teacher doctor baker sailor painter nurse judge clerk widow pilot miner tailor poet guard "
    "cook student driver librarian carpenter singer neighbour lawyer mechanic shepherd gardener captain waiter "
    "porter stranger",
    "nns.person": "farmers teachers doctors sailors painters nurses clerks pilots miners tailors poets guards "
    "students drivers singers neighbours lawyers shepherds gardeners waiters villagers visitors children soldiers "
    "tourists merchants",
    "np.person": "Anna Thomas Maria Peter Clara Henry Ruth Oscar Helen Martin Julia Victor Emma Walter Irene Hugo",
    "nn.animal": "dog horse cat goat fox crow donkey heron rabbit owl mule hen",
    "nns.animal": "dogs horses cats goats foxes crows donkeys herons rabbits owls mules hens bees sparrows",
    "nn.thing": "letter lamp kettle basket ladder hammer mirror blanket violin map clock bottle parcel lantern "
    "notebook chair coat bicycle saddle trunk carpet engine camera wallet bell barrel rope shovel teapot painting",
    "nns.thing": "letters lamps baskets ladders mirrors blankets maps clocks bottles parcels lanterns notebooks "
    "chairs coats bicycles saddles carpets cameras bells barrels ropes shovels tickets apples stamps coins boots",
    "nn.place": "garden kitchen station harbour market forest valley village library cellar bridge church meadow "
    "tower workshop theatre hospital cottage attic courtyard mill barn orchard square river hotel museum castle",
    "nns.place": "hills fields islands mountains towns suburbs gardens streets woods villages",
    "nn.time": "morning evening winter summer autumn spring night afternoon weekend week",
    "nn.idea": "promise secret mistake plan journey quarrel lesson dream problem answer story rumour idea decision",
    "nns.idea": "promises secrets mistakes plans lessons dreams problems answers stories rumours ideas decisions",
    "nn.weather": "rain snow wind fog thunder frost sunlight smoke dust",
    # Qualities.
    "jj.person": "old young sleepy honest clever shy brave lonely cheerful stubborn famous poor wealthy gentle "
    "angry patient nervous polite lazy careful",
    "jj.thing": "heavy fragile golden wooden dusty empty small ancient expensive rusty green blue yellow narrow "
    "round wide precious ordinary black white",
    "jj.place": "quiet noisy dark distant remote sunny cold little busy peaceful muddy famous grand pretty northern "
    "damp",
    "jj.idea": "strange terrible simple foolish wonderful dangerous serious useful curious sad bitter important",
    "jj.weather": "cold heavy thick bitter gentle sudden pale bright",
    # How, how often and when.
    "rb.manner": "slowly quietly carefully gladly suddenly calmly proudly eagerly silently hastily gently patiently "
    "secretly bravely clumsily politely",
    "rb.often": "often rarely always never sometimes usually seldom",
    "rb.when": "soon afterwards then again finally immediately instead twice",
    "rb.sometimes": "sometimes often usually frequently",
    "rb.seldom": "rarely never seldom",
    "rb.weather": "slowly quietly suddenly gently silently completely",
    "rb.open": "fortunately perhaps eventually meanwhile clearly strangely sadly surprisingly certainly sometimes",
    "ql": "very rather quite extremely fairly really",
    "ql.too": "very rather quite too extremely fairly",
    # What is done to a thing, to a person, or to nothing: past, third person, plural and infinitive.
    "vbd.thing": "repaired carried sold painted found hid cleaned bought borrowed examined opened stole wrapped "
    "polished moved",
    "vbz.thing": "repairs carries sells paints finds hides cleans buys borrows examines opens steals wraps polishes "
    "moves",
    "vb.thing": "repair carry sell paint find hide clean buy borrow examine open steal wrap polish move",
    "vbd.person": "visited admired thanked followed helped met watched greeted questioned trusted forgot invited "
    "ignored surprised",
    "vb.person": "visit admire thank follow help meet watch greet question trust invite ignore surprise",
    "vbz.person": "visits admires thanks follows helps meets watches greets questions trusts invites ignores surprises",
    "vbd.alone": "waited slept laughed walked sang worked wandered danced vanished rested whispered sat arrived "
    "hesitated stood",
    "vb.alone": "wait sleep laugh walk sing work wander dance vanish rest whisper sit arrive hesitate stand",
    "vbg.alone": "waiting sleeping laughing walking singing working wandering dancing resting whispering sitting "
    "standing",
    "vbn.thing": "repaired carried sold painted found hidden cleaned bought borrowed examined opened stolen wrapped "
    "polished moved",
    "vbd.give": "gave brought sent showed offered handed lent sold",
    "vb.give": "give bring send show offer hand lend",
    "vbd.idea": "remembered understood discovered mentioned discussed explained kept regretted",
    "vb.idea": "remember understand discover mention discuss explain keep regret",
    "vbd.weather": "covered filled crossed reached surrounded",
    "vbz.change": "surprises divides delights frightens unites amuses",
    "jj.easy": "easy hard dangerous difficult useful pleasant foolish risky",
    # Small words.
    "in.place": "in near behind beside outside beyond inside",
    "in.path": "across through towards past along around",
    "in.time": "before after during until",
    "pp$.person": "his her their my our your",
    "pps": "he she",
    "ppss": "they we you I",
    "ppo": "him her them us me",
    "pn": "everybody nobody somebody everyone someone anybody",
    "md": "will must should could might would can",
}

# One sentence each. {kind} is any word of that kind, {a} is `a` or `an` by the sound of what follows; all else is word/tag.
FRAMES = """
the/at {jj.person} {nn.person} {rb.manner} {vbd.thing} {pp$.person} {jj.thing} {nn.thing} {in.place} the/at {nn.place} ./.
{pps} {rb.manner} {vbd.thing} {a} {jj.thing} {nn.thing} for/in the/at {nn.person} ./.
in/in the/at {jj.place} {nn.place} ,/, {ppss} {rb.often} {vbd.alone} until/in {nn.time} ./.
{rb.open} ,/, the/at {nn.animal} {vbd.alone} {in.place} our/pp$ {jj.place} {nn.place} ./.
{jj.person} {nns.person} {rb.often} {vb.person} us/ppo {in.time} the/at {nn.time} ./.
{nns.person} from/in the/at {nn.place} {rb.often} {vb.thing} their/pp$ {jj.thing} {nns.thing} ./.
{vb.give} me/ppo the/at {jj.thing} {nn.thing} from/in the/at {nn.place} {rb.when} ./.
{np.person} {vbd.give} her/ppo {a} {jj.thing} {nn.thing} {rb.when} ,/, {in.time} the/at {nn.time} ./.
{jj.weather} {nn.weather} {rb.weather} {vbd.weather} the/at {nn.place} {in.place} which/wdt they/ppss {vbd.alone} ./.
{in.path} the/at {nns.place} {vbd.alone} {a} {jj.person} {nn.person} with/in {pp$.person} {nn.animal} ,/, {rb.manner} ./.
{pn} {rb.often} {vbd.person} the/at {jj.person} {nn.person} {in.place} the/at {nn.place} ./.
{rb.seldom} {md} {ppss} {vb.thing} the/at {jj.thing} {nns.thing} {in.place} the/at {nn.place} ./.
do/do not/* {vb.thing} {pp$.person} {jj.thing} {nn.thing} {in.place} the/at {nn.place} ./.
{md} you/ppss {rb.manner} {vb.thing} the/at {jj.thing} {nns.thing} {in.place} the/at {nn.place} ?/.
the/at {nns.animal} {in.place} the/at {nn.place} were/bed {ql} {jj.person} ,/, and/cc they/ppss {vbd.alone} ./.
{vbg.alone} {in.place} the/at {jj.place} {nn.place} ,/, {pps} {rb.manner} {vbd.idea} the/at {nn.idea} ./.
{in.place} {pp$.person} {nn.place} {pps} {rb.manner} {vbd.thing} {a} {jj.thing} {nn.thing} ./.
{pp$.person} {nn.idea} was/bedz {ql.too} {jj.idea} for/in the/at {nns.person} of/in the/at {nn.place} ./.
{np.person} and/cc {np.person} {rb.manner} {vbd.idea} {pp$.person} {jj.idea} {nns.idea} {in.time} the/at {nn.time} ./.
it/pps was/bedz {ql.too} {jj.easy} to/to {vb.thing} the/at {nn.thing} {in.place} the/at {nn.place} ./.
{ql} {jj.person} {nns.person} {vbd.alone} with/in us/ppo {in.place} the/at {nn.place} ./.
{rb.when} the/at {nn.person} with/in the/at {jj.thing} {nn.thing} {vbd.person} {ppo} ./.
who/wps {rb.manner} {vbd.thing} the/at {jj.thing} {nn.thing} {in.place} the/at {nn.place} ?/.
{rb.manner} {pps} {vbd.give} the/at {jj.person} {nn.person} {a} {nn.thing} from/in the/at {nn.place} ./.
{jj.thing} {nns.thing} were/bed {rb.manner} {vbn.thing} by/in the/at {nn.person} and/cc {pp$.person} {nns.person} ./.
with/in {pp$.person} {nn.thing} the/at {nn.person} {rb.manner} {vbd.thing} {a} {jj.thing} {nn.thing} ./.
{vb.idea} the/at {jj.idea} {nns.idea} that/wps the/at {nn.person} {vbd.idea} {rb.when} in/in the/at {nn.place} ./.
{np.person} {rb.often} {vbz.person} {pp$.person} {jj.person} {nn.person} {in.time} the/at {nn.time} ./.
she/pps {vbz.thing} {jj.thing} {nns.thing} {rb.often} ,/, {in.time} the/at {nn.time} ./.
the/at {nn.weather} was/bedz {rb.often} {jj.weather} {in.place} the/at {nns.place} where/wrb we/ppss {vbd.alone} ./.
{pn} {md} {rb.manner} {vb.idea} {pp$.person} {jj.idea} {nn.idea} about/in the/at {nn.thing} ./.
{in.time} the/at {nn.time} ,/, {jj.person} {nns.person} {rb.manner} {vbd.thing} our/pp$ {nns.thing} ./.
when/wrb the/at {nn.person} {vbd.alone} ,/, {pp$.person} {jj.person} {nn.animal} {vbd.alone} {in.place} the/at {nn.place} ./.
there/ex {vbd.alone} {a} {jj.person} {nn.person} {in.place} the/at {nn.place} ,/, and/cc {ppss} {rb.when} {vbd.person} him/ppo ./.
{a} {jj.idea} {nn.idea} {rb.often} {vbz.change} {pp$.person} {nns.person} {in.time} the/at {nn.time} ./.
{nn.weather} and/cc {nn.weather} {rb.weather} {vbd.weather} {pp$.person} {jj.place} {nn.place} {in.time} the/at {nn.time} ./.
yesterday/nr the/at {nn.person} {rb.manner} {vbd.thing} {pp$.person} {jj.thing} {nns.thing} {in.path} the/at {nn.place} ./.
{jj.person} as/cs {pps} was/bedz ,/, the/at {nn.person} {rb.often} {vbd.alone} {in.place} the/at {nn.place} ./.
to/to {vb.thing} {a} {jj.thing} {nn.thing} without/in {pp$.person} {nn.thing} is/bez {rb.often} {jj.easy} ./.
{rb.sometimes} {nns.person} {vb.alone} {in.place} the/at {jj.place} {nn.place} with/in {pp$.person} {nns.animal} ./.
""".strip().splitlines()


class Numbers:
    """Random numbers from a hash of how many were drawn: the same in every version of Python."""

    def __init__(self, seed):
        self.seed, self.drawn = seed, 0

    def below(self, n):
        self.drawn += 1
        word = hashlib.sha256(f"{self.seed} {self.drawn}".encode()).digest()[:8]
        return int.from_bytes(word, "big") * n >> 64


def sentence(frame, numbers):
    """One sentence of a frame, no word in it twice but the small ones."""
    words, used = [], set()
    for slot in frame.split():
        kind = re.fullmatch(r"\{(.+)\}", slot)
        if not kind:
            words.append(tuple(slot.rsplit("/", 1)))
        elif kind[1] == "a":
            words.append(("a", "at"))
        else:
            choices = [w for w in WORDS[kind[1]].split() if w not in used]
            word = choices[numbers.below(len(choices))]
            used.add(word)
            words.append((word, kind[1].split(".")[0]))
    for i, (word, tag) in enumerate(words[:-1]):
        if word == "a" and re.match("[aeio]|u(?!se)|hon", words[i + 1][0]):
            words[i] = ("an", tag)
    first, tag = words[0]
    return [(first[0].upper() + first[1:], tag)] + words[1:]


def main():
    numbers = Numbers(2412)
    lines, seen = [], set()
    while len(lines) < SENTENCES:
        line = " ".join(f"{w}/{t}" for w, t in sentence(FRAMES[len(lines) % len(FRAMES)], numbers))
        if line not in seen:
            seen.add(line)
            lines.append(line)
    header = [
        "# English sentences made by the grammar in corpus.py, tagged as the Brown corpus is. They are part of this project",
        "# and under its licence (MIT OR Apache-2.0). Do not edit: change corpus.py and run it.",
    ]
    path = pathlib.Path(__file__).with_name("corpus.brown")
    path.write_text("\n".join(header + lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
