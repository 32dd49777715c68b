"""Questions over small corpora on which nothing was fitted: what a model sees of other people's documents."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Passages (title, text), questions with a piece of their right answer, and questions that have none."""

    passages: tuple[tuple[str, str], ...]
    answerable: tuple[tuple[str, str], ...]
    unanswerable: tuple[str, ...]


HANDBOOK = Corpus(
    passages=(
        (
            "Annual leave",
            "Full-time employees receive 25 days of paid annual leave per calendar year, plus public holidays. "
            "Part-time staff receive leave in proportion to their hours. Up to five unused days may be carried "
            "over into the next year; they expire on 31 March.\n\nLeave is requested in the HR portal at least "
            "two weeks in advance. Your line manager approves or declines it within three working days.",
        ),
        (
            "Sick leave",
            "If you are ill, tell your manager by 9:30 on the first day. A doctor's certificate is needed from "
            "the fourth day of absence. Sick pay covers your full salary for six weeks in any twelve months.",
        ),
        (
            "Expenses",
            "Travel costs are reimbursed when receipts are uploaded within 30 days. Meals are covered up to 40 "
            "euros a day abroad and 28 euros at home. Flights longer than six hours may be booked in premium "
            "economy; business class needs the approval of the finance director, Marta Lindqvist.",
        ),
        (
            "Remote work",
            "You may work from home up to three days a week. Working from another country is limited to 20 "
            "days a year because of tax rules, and must be agreed with the People team beforehand. The company "
            "provides a laptop, a monitor and 300 euros for a chair.",
        ),
        (
            "Equipment",
            "Laptops are replaced every four years. Lost or stolen devices must be reported to "
            "security@northwind.example immediately so that they can be wiped remotely. Passwords must have at "
            "least 14 characters and are never shared.",
        ),
        (
            "Performance reviews",
            "Reviews take place twice a year, in May and November. Salary changes take effect on 1 January. "
            "Promotions are decided by a panel of three senior colleagues from other departments.",
        ),
        (
            "Onboarding",
            "On your first day you will meet your buddy, collect your badge at reception on the second floor "
            "and set up two-factor authentication. The probation period lasts six months.",
        ),
        (
            "Parental benefits",
            "Parents of either gender can take 16 weeks of fully paid leave within the first year after birth "
            "or adoption. A gradual return at 60 % working time is possible for the following three months.",
        ),
    ),
    answerable=(
        ("How many vacation days do I get?", "25 days"),
        ("Can I carry over unused holiday to next year?", "Up to five unused days"),
        ("When do I need a doctor's note?", "fourth day"),
        ("Who approves business class flights?", "Marta Lindqvist"),
        ("How much can I spend on food per day when travelling abroad?", "40 euros"),
        ("How often are laptops replaced?", "every four years"),
        ("What should I do if my laptop is stolen?", "security@northwind"),
        ("How long is the probation period?", "six months"),
        ("When are performance reviews held?", "May and November"),
        ("How many days a week can I work from home?", "three days a week"),
        ("Why is working from abroad limited?", "tax rules"),
        ("How long is parental leave?", "16 weeks"),
        ("Where do I pick up my badge?", "reception"),
        ("How do I request leave?", "HR portal"),
        ("What is the minimum password length?", "14 characters"),
        ("Who decides on promotions?", "panel of three"),
    ),
    unanswerable=(
        "What is the refund policy?",
        "How do I join the pension plan?",
        "What is the dress code?",
        "Who is the chief executive?",
        "Is there a gym membership discount?",
        "How many employees does the company have?",
        "What is the wifi password for guests?",
        "Can I bring my dog to the office?",
        "Where is the Berlin office?",
        "How do I cancel my subscription?",
        "What happens to my stock options when I leave?",
        "Does the company offer health insurance?",
    ),
)
MANUAL = Corpus(
    passages=(
        (
            "First use",
            "Before first use, remove all packaging and wash the water tank with warm water. Place the machine "
            "on a flat, heat-resistant surface, fill the tank to the MAX line and run two cycles without "
            "coffee.",
        ),
        (
            "Brewing",
            "Press the left button once for an espresso (40 ml) or twice for a lungo (110 ml). Hold it for "
            "three seconds to program your own volume. The machine is ready when the light stops blinking, "
            "after about 25 seconds.",
        ),
        (
            "Descaling",
            "Descale the machine every three months, or when the orange light stays on. Dissolve one sachet of "
            "descaler in half a litre of water, pour it into the tank and press both buttons for five seconds. "
            "The cycle takes 20 minutes. Never use vinegar, as it damages the seals.",
        ),
        (
            "Cleaning",
            "Empty the drip tray daily. The drip tray and the capsule container are dishwasher safe; the water "
            "tank is not. Wipe the housing with a damp cloth and never immerse the machine in water.",
        ),
        (
            "Troubleshooting",
            "If no coffee comes out, check that the tank is seated properly and the capsule is pierced. If the "
            "coffee is too cold, preheat the cup with hot water and descale the machine. Water leaking under "
            "the machine usually means that the drip tray is full.",
        ),
        (
            "Technical data",
            "Voltage: 220-240 V\nPower: 1450 W\nPump pressure: 19 bar\nWeight: 3.1 kg\nTank capacity: 0.9 "
            "litres\nCable length: 0.8 m",
        ),
        (
            "Guarantee",
            "The guarantee covers defects in material and workmanship for two years from the date of purchase. "
            "It does not cover damage by limescale, accidents or improper use. Contact the service line at "
            "0800 555 0199 with your serial number, which is printed under the drip tray.",
        ),
    ),
    answerable=(
        ("How do I make a lungo?", "twice for a lungo"),
        ("How often should I descale?", "every three months"),
        ("Can I use vinegar for descaling?", "Never use vinegar"),
        ("What does the orange light mean?", "orange light"),
        ("Is the water tank dishwasher safe?", "the water tank is not"),
        ("How heavy is the machine?", "3.1 kg"),
        ("How long is the warranty?", "two years"),
        ("Where can I find the serial number?", "under the drip tray"),
        ("Why is there water under the machine?", "drip tray is full"),
        ("My coffee is not hot enough, what can I do?", "preheat the cup"),
        ("How much water does the tank hold?", "0.9 litres"),
        ("What is the pump pressure?", "19 bar"),
        ("How can I change the amount of coffee?", "three seconds"),
        ("What do I do before using it for the first time?", "remove all packaging"),
        ("What number do I call for service?", "0800 555 0199"),
    ),
    unanswerable=(
        "Which capsules are compatible with other brands?",
        "Does it froth milk?",
        "How do I connect it to Bluetooth?",
        "What colours are available?",
        "Where was it made?",
        "How much does the machine cost?",
        "Who designed the machine?",
        "Can I brew tea with it?",
        "What is the return policy?",
        "How do I set the clock?",
        "Who won the 1998 world cup?",
    ),
)
TOWN = Corpus(
    passages=(
        (
            "History",
            "Haldenbruck was founded in 1187 by Count Otto of Reval, who built a wooden bridge over the Mirn. "
            "The bridge burned down in 1342 and was replaced by the stone bridge that still stands. In 1871 "
            "the railway reached the town and brought weaving mills with it.",
        ),
        (
            "Geography",
            "The town lies at 412 metres above sea level on the river Mirn, at the foot of the Kessel hills. "
            "It has 18,400 inhabitants. The nearest city is Arlau, 35 kilometres to the north.",
        ),
        (
            "Economy",
            "Until the 1960s most people worked in the textile industry. Today the largest employer is the "
            "hearing-aid maker Auralis, with 2,100 staff. Tourism has grown since the cycle path along the "
            "Mirn opened in 2009.",
        ),
        (
            "Sights",
            "The town museum in the old mill shows looms from three centuries. It is open from Tuesday to "
            "Sunday, 10 a.m. to 5 p.m.; admission is 6 euros, and children enter free. The Gothic church of "
            "St. Barbara is known for its astronomical clock, made by Jakob Heer in 1523.",
        ),
        (
            "Festivals",
            "The bridge festival takes place on the last weekend of June, with a torchlight procession and "
            "boat races. The Christmas market opens on the first Sunday of Advent in the castle courtyard.",
        ),
        (
            "Transport",
            "Trains to Arlau leave every half hour and take 38 minutes. Bus line 4 connects the station with "
            "the hospital. Parking in the old town is limited to two hours; the garage under the market square "
            "has 320 spaces.",
        ),
        (
            "Education",
            "Haldenbruck has four primary schools and one grammar school. The college of textile design, "
            "founded in 1884, has 650 students from 30 countries.",
        ),
    ),
    answerable=(
        ("Who founded Haldenbruck?", "Count Otto"),
        ("When did the wooden bridge burn down?", "1342"),
        ("How many people live in the town?", "18,400 inhabitants"),
        ("What is the biggest employer?", "Auralis"),
        ("When is the museum open?", "Tuesday to Sunday"),
        ("How much is the entrance fee of the museum?", "6 euros"),
        ("Who made the astronomical clock?", "Jakob Heer"),
        ("How long does the train to Arlau take?", "38 minutes"),
        ("When does the Christmas market start?", "first Sunday of Advent"),
        ("How long may I park in the old town?", "two hours"),
        ("How many students does the college have?", "650 students"),
        ("What river does the town lie on?", "Mirn"),
        ("How high above sea level is Haldenbruck?", "412 metres"),
        ("What happens at the bridge festival?", "torchlight procession"),
        ("Which bus goes to the hospital?", "Bus line 4"),
    ),
    unanswerable=(
        "Who is the mayor of Haldenbruck?",
        "What is the phone number of the tourist office?",
        "Is there a swimming pool?",
        "What is the average temperature in winter?",
        "How do I get from Paris to London?",
        "Which football club plays here?",
        "What does a hotel room cost?",
        "When was the hospital built?",
        "How do I bake sourdough bread?",
        "What languages are spoken in Brazil?",
        "Who painted the Mona Lisa?",
    ),
)
LIBRARY = Corpus(
    passages=(
        (
            "Membership",
            "Anyone living in the county can become a member free of charge. Bring a photo ID and a proof of "
            "address that is not older than three months. Children under 14 need the signature of a parent. A "
            "replacement card costs 4 dollars.",
        ),
        (
            "Borrowing",
            "Members may borrow up to 20 items at a time. Books are lent for four weeks, films and games for "
            "one week. A loan can be renewed twice unless somebody else has reserved the item.",
        ),
        (
            "Late returns",
            "For each day that an item is overdue we charge 25 cents, up to a maximum of 8 dollars per item. "
            "Accounts that owe more than 15 dollars are blocked until the fee is paid. Fines can be paid at "
            "the counter or online by card.",
        ),
        (
            "Opening hours",
            "The main branch opens at 8 a.m. and closes at 9 p.m. on weekdays. On Saturdays it is open from 10 "
            "a.m. to 4 p.m. All branches are closed on Sundays and public holidays.",
        ),
        (
            "Rooms",
            "Study rooms hold four people and can be booked for two hours a day through the website. The large "
            "hall seats 120 and is rented to clubs for 60 dollars an evening; ask Priya Nair at the events "
            "desk.",
        ),
        (
            "Computers and printing",
            "Twelve computers stand on the ground floor; no booking is needed. Printing costs 10 cents a page "
            "in black and white and 50 cents in colour. The wireless network is called READ and needs no "
            "password.",
        ),
        (
            "Digital collection",
            "E-books and audiobooks are borrowed with the Libro app, where your card number is your login. Up "
            "to six titles can be out at once, and they return themselves after 21 days.",
        ),
        (
            "Donations",
            "We gladly accept books that are less than ten years old and in good condition. Encyclopaedias, "
            "magazines and textbooks cannot be taken. Leave donations at the loading dock behind the building "
            "on Tuesday mornings.",
        ),
    ),
    answerable=(
        ("How much does it cost to join the library?", "free of charge"),
        ("What documents do I need to sign up?", "photo ID"),
        ("How many books can I take out?", "20 items"),
        ("How long can I keep a film?", "one week"),
        ("What is the fine for a late book?", "25 cents"),
        ("When does the main branch close on weekdays?", "9 p.m."),
        ("Is the library open on Sunday?", "closed on Sundays"),
        ("How do I reserve a study room?", "booked for two hours"),
        ("Who should I contact to rent the hall?", "Priya Nair"),
        ("How expensive is colour printing?", "50 cents"),
        ("What is the name of the Wi-Fi?", "READ"),
        ("Which app do I use for audiobooks?", "Libro"),
        ("Can I donate old magazines?", "magazines and textbooks cannot"),
        ("Where do I drop off donated books?", "loading dock"),
        ("I lost my card, what does a new one cost?", "4 dollars"),
    ),
    unanswerable=(
        "Is there a café in the building?",
        "Who is the head librarian?",
        "Can I bring my own laptop charger?",
        "How do I apply for a job?",
        "What year was the library built?",
        "Do you offer German lessons?",
        "Where can I park my bicycle?",
        "What is the refund policy?",
        "How do I bake sourdough bread?",
        "Who won the 1998 world cup?",
    ),
)
CORPORA = (HANDBOOK, MANUAL, TOWN, LIBRARY)

# Asked of the Python FAQ: beside the point altogether, and about Python but not in there.
OFF_TOPIC = (
    "What is the refund policy?",
    "Who won the 1998 world cup?",
    "How do I bake sourdough bread?",
    "What is the capital of France?",
    "How tall is Mount Everest?",
    "What is the population of Japan?",
    "How do I change a flat tire?",
    "When was Napoleon born?",
    "Who wrote Hamlet?",
    "What are the symptoms of flu?",
    "How much does a Netflix subscription cost?",
    "How do I reset my iPhone?",
    "What is the best pizza in Naples?",
    "How do I file my taxes?",
    "What is the speed of light?",
    "Which planet has the most moons?",
    "How do I cancel my order?",
    "Who is the president of Brazil?",
    "What time does the store open?",
    "How do I get a visa for Canada?",
)
NOT_IN_THE_FAQ = (
    "How do I install numpy with conda?",
    "What is the salary of a Python developer?",
    "Who is the CEO of the Python Software Foundation?",
    "How do I write a Kubernetes operator?",
    "What is the latest version of Django?",
    "How do I deploy a Flask app to Heroku?",
    "How do I train a neural network with PyTorch?",
    "What is Rust's borrow checker?",
    "How do I use async generators with asyncio?",
    "How do I center a div in CSS?",
)
