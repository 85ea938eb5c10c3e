from benchmarks.markdown import WIDTH, bullets, table


def test_a_table_has_a_line_below_its_titles():
    assert table(("a", "b"), [("1", "2"), ("3", "4")]) == "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |"


def test_points_keep_to_the_width_and_lose_no_word():
    words = "one-half of the words and a https://address/that-is-long " * 9
    made = bullets(words, "short")
    assert all(len(line) <= WIDTH for line in made.splitlines())
    assert made.replace("\n  ", " ").splitlines() == [f"- {words.strip()}", "- short"]
