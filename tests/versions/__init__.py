"""What packtrain stands on: pins, hashes, advisories, licences, and the versions that it is tried with."""
