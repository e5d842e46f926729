"""Twenty prompts of many kinds: chats and plain text, code, lists, other scripts, one word.

Chosen so that the two likeliest tokens never come close on the way, where rounding would decide.
"""

CHATS = (
    "What is the capital of France?",
    "Explain in one sentence why the sky is blue.",
    "Write a haiku about a lighthouse in the fog.",
    "Translate into French: The museum is closed on Tuesdays.",
    "List five vegetables that grow well in the shade, one on each line.",
    "I have 17 apples, give away 5 and then buy twice as many as I have left. How many are there?",
    "Give me a short recipe for tomato soup with basil, for two people.",
    "Which is heavier, a kilogram of feathers or a kilogram of iron?",
)

TEXTS = (
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n    if n < 2:\n',
    "SELECT name, COUNT(*) AS orders\nFROM customers\nJOIN orders ON orders.customer_id =",
    "<!DOCTYPE html>\n<html>\n  <head>\n    <title>Garden diary</title>\n  </head>\n  <body>\n",
    "#include <stdio.h>\n\nint main(void) {\n    for (int i = 0; i < 10; i++) {\n        printf(",
    "Photosynthesis",
    "Hello",
    "1, 1, 2, 3, 5, 8, 13,",
    "Zürich, naïve façade, 東京, Привет, 😀 —",
    "Dear Ms Okafor,\n\nThank you for your letter of 3 March about the broken heating in the flat.",
    "A tide mill is a water mill driven by the rise and fall of the sea. A dam with a sluice is "
    "made across an inlet, or a part of a river's estuary is turned into a reservoir. As the tide"
    " comes in, it enters the mill pond through a gate that opens by itself and closes when the "
    "tide begins to fall. Once the tide is low enough, the stored water is let out to turn a "
    "wheel. The earliest mills of this kind that have been dug up stood on the coast of Ireland, "
    "where monks built them in the seventh century. Later ones served towns along the Atlantic "
    "from Portugal to Norway. A miller at such a place kept no ordinary hours: work began when "
    "the moon said so, in the middle of the night if need be, and each day about fifty minutes "
    "later than on the day before. Besides grain, the wheels drove saws, bellows and, in one "
    "case, the",
    "Minutes of the meeting of the allotment society\n\nPresent: Alice Brown (chair), Bilal Khan, "
    "Chiara Rossi, Dmitri Petrov, Esi Mensah\nApologies: Farid Aziz\n\n1. Water. The pump by the "
    "north gate lost pressure again in August. Bilal has two quotations, of 420 and 515 pounds, "
    "and recommends the dearer one because it comes with a guarantee of five years. Agreed.\n"
    "2. Paths. Chiara reported that the wood chips promised by the council have not been "
    "delivered. She will write once more and, if nothing is heard within a month, buy chips out "
    "of the society's reserve.\n3. Open day. It is to be on the second Saturday in June. Esi "
    "will borrow tables from the school.\n4. Any other business.",
    "Q: What do bees make?\nA: Honey.\nQ: What do cows give?\nA: Milk.\nQ: What do hens lay?\nA:",
)
