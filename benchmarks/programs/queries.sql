-- SQLite in memory: inserts, indices, joins, aggregates, a recursive query.
PRAGMA journal_mode = OFF;
CREATE TABLE item (id INTEGER PRIMARY KEY, grp INTEGER, name TEXT, price REAL);
WITH RECURSIVE n(i, s) AS (SELECT 1, 1 UNION ALL
    SELECT i + 1, (s * 16807) % 2147483647 FROM n WHERE i < 150000)
INSERT INTO item SELECT i, s % 500, 'item-' || (s % 9973), (s % 100000) / 100.0 FROM n;
CREATE INDEX item_grp ON item (grp, price);
CREATE INDEX item_name ON item (name);
SELECT count(*), sum(grp), round(avg(price), 4) FROM item;
SELECT grp, count(*), round(max(price), 2) FROM item GROUP BY grp ORDER BY 2 DESC, 1 LIMIT 3;
SELECT count(*) FROM item a JOIN item b ON a.name = b.name AND a.id < b.id;
UPDATE item SET price = price * 1.1 WHERE grp % 7 = 0;
DELETE FROM item WHERE name LIKE '%77';
SELECT count(*), round(sum(price), 1) FROM item WHERE price BETWEEN 100 AND 500;
SELECT name, count(*) FROM item GROUP BY name HAVING count(*) > 12 ORDER BY name LIMIT 5;
