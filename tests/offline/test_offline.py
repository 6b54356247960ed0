from __future__ import annotations

import ast
import re
import sys
from importlib.resources import files
from itertools import pairwise

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from offline_driver import BLOCK, QUOTED, Drive

from rlm.clients.base import Client
from rlm.offline.client import NO_MODEL, OfflineClient
from rlm.offline.demo import python_topics
from rlm.offline.language import key_terms, lowered, matcher, sentence_spans, stem_of
from rlm.offline.plans import plan_for
from rlm.offline.quotes import split_prompt
from rlm.values import Call, Message

STORY = """\
Chapter 1 The island

The lighthouse keeper of Skerry was called Magnus Rendall. He had kept the light for thirty-one years.
He owned two goats and a red boat. The boat was built in Stromness.

Chapter 2 The storm

In the storm of 1953 the red boat was lost. Nobody drowned, but the goats were never seen again.
The council paid Magnus eighty pounds for the boat. The storm lasted three days.

Chapter 3 The new light

An engineer named Ada Linklater installed the electric light. Magnus retired to Kirkwall.
"""


def ask(context, question, **options):
    return Drive(context, **options).ask(question)


def quotes_of(answer, context):
    """Every quote of an answer; each must be what its expression gives."""
    found = QUOTED.findall(answer)
    for quote, source in found:
        assert eval(source, {"context": context}) == quote
    return [quote for quote, _ in found]


def sub(prompt):
    async def main():
        return await OfflineClient().complete(Call(model="offline", messages=(Message("user", prompt),)))

    return anyio.run(main).text


def test_it_is_a_client_that_costs_nothing():
    async def main():
        assert isinstance(OfflineClient(), Client)
        reply = await OfflineClient().complete(Call(model="x", messages=(), role="sub"))
        assert (reply.model, reply.cost_usd, reply.usage.total_tokens) == ("offline", 0.0, 0)

    anyio.run(main)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Who was the lighthouse keeper of Skerry?", "Magnus Rendall"),
        ("Where was the boat built?", "Stromness"),
        ("How much did the council pay for the boat?", "eighty pounds"),
        ("How long did the storm last?", "three days"),
        ("Who installed the electric light?", "Ada Linklater"),
    ],
)
def test_the_first_quote_answers_a_question_of_fact(question, expected):
    assert expected in quotes_of(ask(STORY, question), STORY)[0]


@pytest.mark.parametrize(
    ("question", "missing"),
    [
        ("Which submarine did Magnus command?", "submarine"),
        ("Who is the president of Mongolia?", "Mongolia"),
        ("What did the helicopter bring to Skerry?", "helicopter"),
    ],
)
def test_not_found_names_the_words_that_the_text_never_uses(question, missing):
    answer = ask(STORY, question)
    assert answer.startswith("NOT FOUND")
    assert f"“{missing}”" in answer.splitlines()[0]
    quotes_of(answer, STORY)


def test_near_passages_that_lack_only_a_word_the_text_never_uses_are_worth_a_look():
    answer = ask(STORY, "Who manned the lighthouse of Skerry?")
    assert answer.startswith("NOT FOUND: the text never uses “manned”.")
    assert "all the other words, and may answer it in other words:" in answer
    assert "Magnus Rendall" in quotes_of(answer, STORY)[0]
    answer = ask(STORY, "Did Ada Linklater steal the goats of Kirkwall?")
    assert "which may have nothing to do with it" in answer


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("When did Moses die?", ["Moses", "die"]),
        ("Who won the war?", ["won", "war"]),
        ("What is the rent per month since May?", ["rent", "month"]),
        ("Wann war die Schlacht?", ["Schlacht"]),
        ("¿Quién es el inquilino?", ["inquilino"]),
        ("Chi ha firmato il contratto?", ["firmato", "contratto"]),
        ("Qual é o preço da casa?", ["preço", "casa"]),
        ("Wie heeft het huis gekocht?", ["huis", "gekocht"]),
        ('Where does it say "die"?', ["die"]),
        ("Who?", ["Who"]),
        ("谁是承租人", ["承租", "租人"]),
        ("月租金是多少", ["月租", "租金"]),
        ("家賃はいくらですか", ["家賃", "賃は"]),
        ("谁是", ["谁是"]),
    ],
)
def test_small_words_are_those_of_the_language_of_the_question(question, words):
    assert [term.word for term in key_terms(question)] == words


@pytest.mark.parametrize("name", ["Tenant", "Landlord"])
def test_who_somebody_is_stands_where_a_contract_names_them(name):
    text = (
        'Between Orchard Holdings ("the Landlord") and Ms Petra Novak (“the Tenant”).\n\n'
        "The Tenant pays the rent.\n\nThe Landlord mends the roof.\n"
    )
    assert "Petra Novak" in quotes_of(ask(text, f"Who is the {name.lower()}?"), text)[0]


def test_one_common_word_of_two_is_not_an_answer():
    text = "The dog barked at night. " * 5 + "\n\n" + "A plain day.\n\n" * 300 + "The cat slept.\n\n" * 5
    assert ask(text, "What did the dog do to the cat?").startswith("NOT FOUND")


CONTEXTS = {
    "str": STORY,
    "bytes": STORY.encode(),
    "crlf": STORY.replace("\n", "\r\n"),
    "one line": STORY.replace("\n", " "),
    "list": ["Nothing here.", STORY, "Nor here."],
    "tuple": ("Nothing here.", STORY),
    "dict": {"a.txt": "Nothing here.", "it's “b”.txt": STORY, 3: "three"},
    "nested": {"folder": [{"name": "x", "body": STORY * 2}]},
    "messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": STORY}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": STORY}]}],
    "rows": [
        {"id": 1, "keeper": "Magnus Rendall, the keeper of Skerry", "paid": "he got eighty pounds"},
        {"id": 2, "keeper": "nobody", "paid": None},
    ],
    "capital dotted": "İİİ\n" + STORY,
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_quote_is_verbatim_at_the_place_it_names_in_a_context_of_any_form(name):
    context = CONTEXTS[name]
    quotes = quotes_of(ask(context, "Who was the keeper of Skerry?"), context)
    assert "Magnus Rendall" in quotes[0]


def test_a_quote_from_several_documents_names_its_document():
    answer = ask({"a.txt": "Nothing.", "b.txt": STORY}, "Who was the keeper of Skerry?")
    assert "— context['b.txt'][" in answer


def test_many_small_documents_are_documents_and_no_row():
    context = {f"{n}.txt": f"The code of unit {n} is Z{7 * n}.\n" for n in range(300)}
    answer = ask(context, "What is the code of unit 123?")
    assert quotes_of(answer, context)[0] == "The code of unit 123 is Z861."
    assert "context['123.txt'][" in answer


def test_a_small_dict_is_read_as_one_row_with_its_keys():
    context = {"host": "localhost", "port": 8080}
    assert "8080" in quotes_of(ask(context, "What is the port of the host?"), context)[0]


@pytest.mark.parametrize("context", [None, "", "   \n", [], {}, [""], {"a": ""}])
@pytest.mark.parametrize(
    "question", ["Who is it?", "How many times does x occur?", "List the chapters.", "", "???"]
)
def test_without_text_there_is_no_answer_and_no_error(context, question):
    answer = ask(context, question)
    assert answer.startswith("NOT FOUND")
    assert NO_MODEL in answer


@pytest.mark.parametrize(
    ("question", "start"),
    [
        ('How many times does the word "boat" occur?', "“boat” occurs 4 times"),
        ("How often is Magnus mentioned?", "“Magnus” occurs 3 times"),
        ("Count the occurrences of 'red boat'.", "“red boat” occurs 2 times"),
        ("How many occurrences of storm are there?", "“storm” occurs 3 times"),
        ("How many times does giraffe appear in the text?", "NOT FOUND: “giraffe” occurs 0 times"),
        ("How many times does light appear?", "“light” occurs 3 times"),
    ],
)
def test_counting_is_done_by_code(question, start):
    drive = Drive(STORY)
    answer = drive.ask(question)
    assert answer.startswith(start)
    assert not drive.prompts
    quotes_of(answer, STORY)


def test_a_count_tells_longer_words_and_each_document_apart():
    answer = ask(["light and lighthouse", "Light light"], 'How often does "light" occur?')
    assert "occurs 3 times as a whole word in any case (2 exactly" in answer
    assert "Longer words contain it 1 more time." in answer
    assert "context[1] 2, context[0] 1" in answer


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("List the chapters.", ["Chapter 1 The island", "Chapter 2 The storm", "Chapter 3 The new light"]),
        ("What are the section headings?", ["Chapter 1 The island", "Chapter 2 The storm", "Chapter 3 The new light"]),
        ("How many chapters are there?", ["Chapter 1 The island", "Chapter 2 The storm", "Chapter 3 The new light"]),
        ("Which chapters mention the goats?", ["Chapter 1 The island", "Chapter 2 The storm"]),
        ('List the chapters whose title contains "storm".', ["Chapter 2 The storm"]),
        ("Which lines contain Kirkwall?", ["An engineer named Ada Linklater installed the electric light. Magnus retired to Kirkwall."]),
    ],
)  # fmt: skip
def test_listing_is_done_by_code(question, expected):
    drive = Drive(STORY)
    assert quotes_of(drive.ask(question), STORY) == expected
    assert not drive.prompts


def test_documents_that_mention_a_word_are_listed_by_name():
    answer = ask({"a.txt": "no", "b.txt": STORY, "c.txt": "Magnus again"}, "Which documents mention Magnus?")
    assert "Number of documents with “Magnus”: 2." in answer
    assert "context['b.txt']" in answer
    assert "context['c.txt']" in answer
    assert "context['a.txt']" not in answer


@pytest.mark.parametrize(
    ("question", "cell", "wanted"),
    [
        ("How many times does the text mention goats?", "count", "goats"),
        ("How often does it use the word very?", "count", "very"),
        ("Count the number of times that Moses appears", "count", "Moses"),
        ("Count the word boat.", "count", "boat"),
        ("Count the chapters.", "places", ""),
        ("How often is Lord of the Rings mentioned in the book?", "count", "Lord of the Rings"),
        ("How many occurrences of red boat are there in the text?", "count", "red boat"),
        ("Where is Magnus mentioned?", "count", "Magnus"),
        ("How many lines contain error?", "places", "error"),
        ("Which lines have ERROR in them?", "places", "ERROR"),
        ("In which documents is Magnus mentioned?", "places", "Magnus"),
        ("In which chapter does the storm occur?", "places", "storm"),
        ("How many sections does the document have?", "places", ""),
        ("What are the titles of the chapters?", "places", ""),
        ("How many times did Peter deny Jesus?", "search", None),
        ("How often does Peter deny Jesus?", "search", None),
        ("Which section describes the payment?", "search", None),
        ("How many files does the system open?", "search", None),
        ("Where is Moses buried?", "search", None),
    ],
)
def test_only_what_code_can_answer_is_counted_or_listed(question, cell, wanted):
    plan = plan_for(question)
    assert plan.steps[1].cell == cell
    assert plan.values.get("WANTED") == wanted


@pytest.mark.parametrize(
    "heads",
    [
        "# One\nx\n\n## Two\ny\n",
        "One\n===\nx\n\nTwo\n---\ny\n",
        "1 One\nx\n2 Two\ny\n",
        "Kapitel 1 One\nx\nKapitel 2 Two\n",
    ],
)
def test_headings_are_seen_in_several_styles(heads):
    listed = quotes_of(ask(heads, "List the headings"), heads)
    assert [title.split()[-1] for title in listed] == ["One", "Two"]


@pytest.mark.parametrize(
    ("question", "what"),
    [
        ("Why was the boat lost?", "a reason"),
        ("Compare the boat and the goats.", "a comparison"),
        ("Summarise the story of Magnus.", "a summary"),
        ("How many different people live on Skerry?", "a count of distinct things"),
        ("List all people.", "things of a kind"),
        ("Translate the first chapter into French.", "a text to be written"),
        ("What is likely to happen to Magnus?", "a judgement"),
        ("Explain the storm.", "an explanation"),
    ],
)
def test_a_question_that_needs_a_model_is_answered_with_that(question, what):
    assert f"This question asks for {what}" in ask(STORY, question)


@pytest.mark.parametrize(
    "question", ["Which chapter describes the storm?", "What should be returned?", "Did Paul write it?"]
)
def test_a_question_of_fact_is_not_mistaken_for_more(question):
    assert "needs a language model" not in ask(STORY, question)


@pytest.mark.parametrize("question", ["Where was the boat built?", "Who is Napoleon?", "How often is Magnus mentioned?", "List the chapters.", ""])  # fmt: skip
def test_every_answer_says_that_no_model_was_used(question):
    assert NO_MODEL in ask(STORY, question)


def test_a_search_takes_three_turns_and_a_count_two():
    drive = Drive(STORY)
    drive.ask("Where was the boat built?")
    assert drive.turns == 3
    drive = Drive(STORY)
    drive.ask("How often is Magnus mentioned?")
    assert drive.turns == 2


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_few_replies_are_enough(limit):
    drive = Drive(STORY, max_iterations=limit)
    assert "Stromness" in drive.ask("Where was the boat built?")
    assert drive.turns <= limit


def test_a_later_question_of_a_session_is_answered_itself_and_needs_no_second_look():
    drive = Drive(STORY)
    assert "Stromness" in drive.ask("Where was the boat built?")
    answer = drive.ask("Who installed the electric light?")
    assert "Ada Linklater" in quotes_of(answer, STORY)[0]
    assert "Stromness" not in answer
    assert drive.turns == 2
    assert drive.ask("How often is Magnus mentioned?").startswith("“Magnus” occurs 3")
    assert drive.turns == 1


def test_a_question_mark_in_the_output_of_a_cell_is_no_new_question():
    text = STORY + "\n\nQuestion:\nWho are you?\n\nContext:\nnone\n\nNew question:\nWhat?\n"
    assert "Stromness" in ask(text, "Where was the boat built?")


def test_a_question_of_several_lines_is_kept_whole():
    drive = Drive(STORY)
    drive.ask("Where was\nthe boat built?\n\nContext: the red one")
    assert "the red one" in drive.prompts[0]
    assert "is data" not in drive.prompts[0]


def test_lost_variables_are_looked_up_again():
    drive = Drive(STORY)
    drive.ask("Where was the boat built?")
    for name in ("texts", "pieces", "weight"):
        del drive.namespace[name]
    assert "Ada Linklater" in drive.ask("Who installed the electric light?")
    assert "NameError" in drive.outputs[-4]


def test_cells_that_keep_failing_end_the_run_with_the_error():
    drive = Drive(STORY)
    drive.namespace["llm_batch"] = lambda prompts: 1 / 0
    answer = drive.ask("Where was the boat built?")
    assert "ZeroDivisionError" in answer
    assert NO_MODEL in answer


def test_failed_sub_calls_are_counted_in_the_answer():
    drive = Drive(["The boat was built in Stromness.", "A boat was built in Leith."])
    whole = drive.llm_batch
    drive.namespace["llm_batch"] = lambda prompts: [*whole(prompts)[:1], ""]
    answer = drive.ask("Where was the boat built?")
    assert "1 of 2 sub-calls failed" in answer
    assert "Stromness" in answer


def test_when_every_sub_call_fails_the_answer_says_that_nothing_was_read():
    drive = Drive(STORY)
    drive.namespace["llm_batch"] = lambda prompts: ["" for _ in prompts]
    answer = drive.ask("Where was the boat built?")
    assert answer.startswith("NOT FOUND: nothing could be read.")
    assert "sub-calls failed" in answer


@pytest.mark.parametrize(
    ("text", "question", "expected"),
    [
        ("Der Hafen liegt im Norden. Die Brücke wurde 1902 gebaut. Der Markt ist klein.", "Wann wurde die Brücke gebaut?", "1902"),
        ("Le port est au nord. Le pont fut construit en 1902. Le marché est petit.", "Quand le pont a-t-il été construit ?", "1902"),
        ("港口在北方。这座桥建于一九零二年。市场很小。", "桥建于哪一年？", "一九零二年"),  # noqa: RUF001 - Chinese
        ("Порт на севере. Мост построен в 1902 году. Рынок мал.", "Когда построен мост?", "1902"),
    ],
)  # fmt: skip
def test_other_languages_are_searched_by_their_words(text, question, expected):
    assert any(expected in quote for quote in quotes_of(ask(text, question), text))


@pytest.mark.parametrize(
    "prompt",
    [
        f"Where was the boat built?\n\n{STORY}",
        f"Where was the boat built?\n{STORY}",
        f"Where was the boat built?\n\nReply with the sentences that say where it was built, or NOT FOUND.\n\n{STORY}",
        f"Where was the boat built? {STORY}",
        f"{STORY}\n\nWhere was the boat built?",
        f"{STORY}\n\nQuestion: Where was the boat built?",
        f"Question: Where was the boat built?\n\nContext:\n{STORY}",
        f"Context:\n{STORY}\n\nQuestion: Where was the boat built?",
        f"Tell me where the boat was built.\n\nText: {STORY}",
        f"Answer from the text below.\n\nPassage:\n{STORY}\n\nQuestion:\nWhere was the boat built?",
    ],
)
def test_a_prompt_of_any_form_is_answered_with_a_sentence_of_its_passage(prompt):
    first, _, note = sub(prompt).partition("\n")
    assert first == "The boat was built in Stromness."
    assert NO_MODEL in note


def test_a_prompt_without_a_passage_is_answered_with_what_is_possible():
    assert sub("What is the capital of France?").startswith(f"{NO_MODEL}: I can only quote")


def test_a_prompt_whose_passage_lacks_the_answer_is_not_found():
    reply = sub(f"Who was Napoleon Bonaparte?\n\n{STORY}")
    assert reply.startswith("NOT FOUND")
    assert "Napoleon, Bonaparte" in reply


def test_a_long_prompt_is_read_too():
    assert sub("Where was the boat built?\n\n" + "Waves and wind.\n\n" * 20_000 + STORY).startswith(
        "The boat was built"
    )


def test_a_prompt_that_is_empty_or_strange_does_no_harm():
    for prompt in ("", " ", "?", "\n\n\n", "Question:", "Context:\n", "\ud800?", "\0", "a" * 100_000):
        assert NO_MODEL in sub(prompt)


@given(st.text(max_size=400))
@settings(max_examples=150, deadline=None)
def test_no_prompt_makes_it_fail(prompt):
    assert sub(prompt)
    assert all(part in prompt for part in split_prompt(prompt))


@given(st.text(max_size=200), st.text(max_size=300))
@settings(max_examples=80, deadline=None)
def test_no_question_and_no_text_make_a_run_fail(question, text):
    answer = ask(text, question)
    assert NO_MODEL in answer
    assert "failed" not in answer.replace(question, "").replace(text, "")


@given(st.text(alphabet=st.characters(categories=["Ll", "Lo"]), min_size=1, max_size=14) | st.from_regex(r"[a-z]{1,12}", fullmatch=True))  # fmt: skip
def test_a_stem_matches_its_own_word(word):
    word = lowered(word)
    assert matcher(stem_of(word)).search(word)


@pytest.mark.parametrize(
    "forms",
    [
        "raise raises raised raising", "city cities", "belly bellies", "statement statements", "stop stops stopped stopping",
        "carry carried carries carrying", "destroy destroyed destroys", "bury buried buries", "build builds building",
        "leave leaves leaving left", "pay pays paid paying", "child children", "buy buys bought", "wife wives",
    ],
)  # fmt: skip
def test_forms_of_one_word_find_each_other(forms):
    for one in forms.split():
        for other in forms.split():
            assert matcher(stem_of(one)).search(other), (one, other)


@pytest.mark.parametrize(("one", "other"), [("ark", "mark"), ("ark", "arkansas"), ("son", "person"), ("state", "statement"), ("men", "mend"), ("ran", "rant")])  # fmt: skip
def test_a_word_does_not_find_a_longer_stranger(one, other):
    assert not matcher(stem_of(one)).search(other)


@given(st.text(max_size=500))
@settings(deadline=None)
def test_sentences_come_in_order_and_leave_out_nothing_but_marks(text):
    spans = sentence_spans(text)
    assert all(start < end for start, end in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    kept = "".join(text[start:end] for start, end in spans)
    assert re.findall(r"\w", kept) == re.findall(r"\w", text)


@given(st.text(max_size=300))
def test_lowering_keeps_positions(text):
    assert len(lowered(text)) == len(text)


def test_a_question_of_small_words_is_still_searched_for():
    assert [term.word for term in key_terms("Who is it?")] == ["Who", "is", "it"]
    assert [term.word for term in key_terms('What does "is" mean?')] == ["is", "mean"]


def cells():
    folder = files("rlm.offline.cells")
    return {item.name: item.read_text("utf-8") for item in folder.iterdir() if item.name.endswith(".py") and item.name != "__init__.py"}  # fmt: skip


@pytest.mark.parametrize("name", cells())
def test_a_cell_imports_only_the_standard_library_and_is_short(name):
    cell = cells()[name].partition("# The cell:\n")[2]
    imported = {
        alias.name
        for node in ast.walk(ast.parse(cell))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    imported |= {node.module for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names
    assert "```" not in cell
    assert 0 < len(cell.splitlines()) <= 70


def test_the_search_cell_and_the_sub_role_know_the_same_forms_of_a_word():
    namespace = {}
    tree = ast.parse(cells()["search.py"].partition("# The cell:\n")[2])
    tree.body = [
        node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef))
    ]
    exec(compile(tree, "search", "exec"), namespace)
    for word in [
        "ark",
        "city",
        "belly",
        "destroy",
        "raising",
        "statements",
        "1953",
        "brücke",
        "桥建",
        "über",
        "x",
    ]:
        assert namespace["matcher"](stem_of(word)) == matcher(stem_of(word))


def test_every_reply_of_the_root_is_prose_and_then_cells_that_compile():
    drive = Drive(STORY)
    drive.ask("Who said \"it's ```\\n\" and '''?")
    for message in drive.messages:
        if message.role == "assistant":
            assert not message.content.startswith("```")
            for block in BLOCK.findall(message.content):
                compile(block, "cell", "exec")


def test_the_demo_text_is_one_long_text_with_headings():
    text = python_topics()
    assert len(text) > 400_000
    assert 'The "assert" statement\n****' in text
    answer = ask(text, "What happens when the pass statement is executed?")
    assert "nothing happens" in quotes_of(answer, text)[0]


def test_2000_documents_are_searched_in_one_run():
    documents = [f"Report {i}. The valve of pump {i} was closed by Smith." for i in range(2000)]
    documents[1234] += " The gauge of the turbine showed ninety bar."
    answer = ask(documents, "What did the gauge of the turbine show?")
    assert "ninety bar" in quotes_of(answer, documents)[0]
    assert "— context[1234][" in answer
