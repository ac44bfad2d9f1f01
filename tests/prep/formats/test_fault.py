"""What is wrong with a record, in one line whatever the record holds."""

import pickle

from prep.formats.fault import RecordFault


def test_keys_of_a_record_make_no_lines_of_their_own() -> None:
    fault = RecordFault(3, "messages[0].a\nall is well\x1b[2J: unknown key")
    assert fault.message == "messages[0].a\\U0000000aall is well\\U0000001b[2J: unknown key"
    assert pickle.loads(pickle.dumps(fault)).message == fault.message
