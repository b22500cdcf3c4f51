"""Looks into the machine's SQLite database, from within: SQLite asks where a file really is.

Executed there, for as long as the machine is on: each line of JSON on standard input is one
statement, answered by one line. `BEGIN` keeps a connection, with its lock, until `ROLLBACK`.
"""

import json
import sqlite3
import sys

kept = None
for line in sys.stdin:
    path, sql, parameters = json.loads(line)
    connection = None
    try:
        connection = kept or sqlite3.connect(path, timeout=10, isolation_level=None)
        rows = connection.execute(sql, parameters).fetchall()
        if sql.startswith("BEGIN"):
            kept = connection
        elif sql == "ROLLBACK":
            kept = None
        answer = {"rows": rows}
    except sqlite3.Error as error:
        answer = {"error": str(error)}
    finally:
        if connection is not None and connection is not kept:
            connection.close()
    print(json.dumps(answer), flush=True)
