"""Which language a prompt is written in."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpo_integrations.language import detect, is_english

FOREIGN = {
    "de": [
        "Wie geht es dir?",
        "Schreibe ein Gedicht über den Herbst.",
        "Was ist der Unterschied zwischen TCP und UDP?",
    ],
    "es": [
        "¿Qué es la fotosíntesis?",
        "Escribe un correo para mi jefe pidiendo vacaciones",
        "Dame ideas para una cena barata",
    ],
    "fr": ["Comment faire une bonne mayonnaise ?", "Explique la relativité à un enfant de dix ans"],
    "pt": ["Como posso aprender a tocar violão?", "Escreva uma carta de apresentação"],
    "it": ["Scrivi una poesia sul mare", "Qual è il fiume più lungo d'Italia?", "Come si prepara la carbonara?"],
    "nl": ["Schrijf een kort verhaal over een hond", "Wat is de hoofdstad van België?"],
    "sv": ["Hur lagar man köttbullar?", "Vad är skillnaden mellan el och energi?", "Skriv en dikt om vintern"],
    "da": ["Hvordan bager jeg rugbrød?", "Skriv en historie om en kat"],
    "no": ["Hvordan kan jeg lære å spille gitar?", "Hva er hovedstaden i Norge?"],
    "fi": ["Mikä on Suomen pääkaupunki?", "Kirjoita runo kesästä", "Miten leivon ruisleipää?"],
    "pl": ["Jak ugotować pierogi?", "Napisz wiersz o jesieni", "Jaka jest stolica Polski?"],
    "cs": ["Jak se dělá svíčková?", "Napiš krátkou pohádku o drakovi"],
    "tr": ["Bana İstanbul hakkında bilgi ver", "Evde ekmek nasıl yapılır?", "Kısa bir hikaye yaz"],
    "id": ["Bagaimana cara membuat nasi goreng?", "Apa ibu kota Indonesia?", "Tuliskan puisi tentang laut"],
    "vi": ["Làm thế nào để học tiếng Anh nhanh?", "Viết một bài thơ về mùa thu"],
    "ro": ["Cum se face mămăliga?", "Scrie o poezie despre toamnă"],
    "hu": ["Hogyan kell gulyást főzni?", "Írj egy verset az őszről"],
    "ru": ["Как приготовить борщ?", "Почему небо голубое?", "Напиши стихотворение об осени"],
    "uk": ["Як приготувати вареники?", "Напиши вірш про весну"],
    "zh": ["你好,请介绍一下你自己", "怎么做红烧肉?", "写一首关于春天的诗"],
    "ja": ["日本の首都はどこですか?", "おいしいカレーの作り方を教えて"],
    "ko": ["한국의 수도는 어디인가요?", "김치찌개 만드는 법을 알려줘"],
    "ar": ["ما هي عاصمة مصر؟", "اكتب قصيدة عن البحر"],
    "hi": ["भारत की राजधानी क्या है?", "मुझे एक कहानी सुनाओ"],
    "el": ["Ποια είναι η πρωτεύουσα της Ελλάδας;"],
    "th": ["เมืองหลวงของประเทศไทยคืออะไร"],
}
RELATIVES = {"Come si prepara la carbonara?", "Skriv en dikt om vintern", "Skriv en historie om en kat"} | {
    "Напиши стихотворение об осени",
    "भारत की राजधानी क्या है?",
}  # known not to be English, and taken for a close relative

any_text = st.text(st.characters(exclude_categories=()), max_size=300)


@pytest.mark.parametrize(("code", "prompt"), [(code, text) for code, texts in FOREIGN.items() for text in texts])
def test_a_short_foreign_prompt_is_not_english_and_is_named(code: str, prompt: str) -> None:
    assert not is_english(prompt)
    assert detect(prompt) == code or prompt in RELATIVES


@pytest.mark.parametrize(
    "prompt",
    [
        "Tell me about Harry Potter",
        "c# extract hashtags from text",
        "tel me abuot the histroy of teh internet plz",
        "Who is Robert Kiyosaki?",
        "Was Jesus an extraterrestrial?",
        "café near me",
        "What does 'Schadenfreude ist die schönste Freude' mean?",
        'Translate "Wie geht es dir, mein lieber Freund?" into English',
        "Translate this into English:\nLa vie est belle et je suis heureux de te voir.",
        "What sound does this make?\n好",
        "WHY IS THE SKY BLUE",
        "Fix this:\n```js\nconst größe = breite * höhe;\n```",
        "design an electric Pokémon",
    ],
)
def test_english_with_names_typos_code_and_foreign_material_is_english(prompt: str) -> None:
    assert is_english(prompt)


@pytest.mark.parametrize(
    "prompt", ["Übersetze ins Englische:\nThe quick brown fox jumps over the lazy dog and goes home again."]
)
def test_a_foreign_task_about_an_english_passage_is_not_english(prompt: str) -> None:
    assert not is_english(prompt)


@pytest.mark.parametrize(
    "text", ["", " ", "x", "42", "👍🎉", "x = 1", "hi", "https://example.org/über", "{name}", "\ud800"]
)
def test_what_is_too_short_or_no_prose_has_no_language_and_counts_as_english(text: str) -> None:
    assert detect(text) is None
    assert is_english(text)


@pytest.mark.parametrize("text", ["你好", "Привет", "こんにちは"])
def test_a_single_foreign_word_in_another_script_is_not_english(text: str) -> None:
    assert not is_english(text)


@settings(max_examples=200, deadline=None)
@given(any_text)
def test_any_text_has_a_verdict_and_always_the_same(text: str) -> None:
    assert (detect(text), is_english(text)) == (detect(text), is_english(text))
    if detect(text) is not None:
        assert is_english(text) == (detect(text) == "en")


def test_threads_agree() -> None:
    prompts = [text for texts in FOREIGN.values() for text in texts] * 5
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(detect, prompts)) == [detect(prompt) for prompt in prompts]


def test_importing_the_module_loads_no_identifier() -> None:
    code = "import sys, bpo_integrations.language; assert 'py3langid' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
