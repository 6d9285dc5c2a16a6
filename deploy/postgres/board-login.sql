-- The login of the board, which can read what is published and nothing else. compose.yaml runs it after roles.sql, with
-- the password in a file; run again, it sets the password of that file.
\set password `cat /run/secrets/board_password`
SELECT 'CREATE ROLE board LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'board') \gexec
GRANT vote_board TO board;
ALTER ROLE board PASSWORD :'password';
