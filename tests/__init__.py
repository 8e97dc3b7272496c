import pytest

pytest.register_assert_rewrite("tests.helpers")  # before the first test module imports it
