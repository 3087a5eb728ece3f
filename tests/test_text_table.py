"""What the commands print: counts and ranges in words."""

from eval.text_table import between, counted


def test_a_count_stands_before_its_noun_in_the_right_number():
    assert [counted(n, "random direction") for n in (0, 1, 3)] == [
        *("0 random directions", "1 random direction", "3 random directions"),
    ]


def test_a_range_of_one_value_is_the_value():
    assert between([2.0, 1.5, 3.25]) == "1.5 to 3.25" and between([2.0, 2.0001]) == "2"
